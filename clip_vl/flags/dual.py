"""The flags that the programs of the dual encoder share: towers, heads, optimisation. No torch is imported here."""

import dataclasses
from dataclasses import dataclass

from clip_vl.flags.parser import flag, given, values_of
from clip_vl.flags.published import ITRA

IMAGE_BUILDERS = ("openclip", "torchvision", "timm", "clip")
TEXT_BUILDERS = ("openclip", "huggingface", "sbert", "clip")
POOLERS = ("cls", "cls_before_pooler", "mean", "PromptBERT")
ADAPTERS = ("bottleneck_adapter", "lang_adapter", "prefix_tuning", "dummy", "compacter", "lora_adapter", "ia3_adapter",
            "mam_adapter", "unipelt")  # fmt: skip
PRECISIONS = ("amp", "bf16", "fp16", "fp32")
CROPS = ("short_side", "squash", "pad")


@dataclass
class ImageTowerFlags:
    """Image tower"""

    image_model_builder: str = flag(
        "clip", "Library of the image tower; clip is this repository's CLIP.", choices=IMAGE_BUILDERS
    )
    image_model: str = flag(
        "RN50", "Architecture of the image tower, such as RN50, mobilenet_v3_large, vit_small_patch16_224, RN-tiny."
    )
    image_model_tag: str = flag(
        "", "Tag of the published image weights, for --pretrained_image_model [openai for openclip and clip]; with "
            "--image_weights, the tag that the file has.",
    )  # fmt: skip
    pretrained_image_model: bool = flag(False, "Start the image tower from published weights, found in --cache_dir.")
    image_weights: str | None = flag(None, "File with the weights of the image tower.")
    image_resolution: int | None = flag(None, "Side of the square images in pixels [the tower's own].", at_least=1)
    image_head_n_layers: int = flag(
        0, "Layers of the image projection head: 0 no head, 1 linear, 2 or more DINO's MLP.", at_least=0
    )


@dataclass
class ImageTrainingFlags(ImageTowerFlags):
    """Training of the image tower"""

    lock_image_model: bool = flag(False, "Freeze the image tower; its head trains.")
    unlock_image_model: bool = flag(False, "Train the image tower, as without --lock_image_model.")
    lock_image_partial: str = flag(
        "", "Freeze image-tower parameters whose name contains a keyword; 'kw,!kw' trains those of the second again."
    )
    grad_checkpointing: bool = flag(
        False, "Recompute the image tower's activations in the backward pass, where the tower can."
    )


@dataclass
class TextTowerFlags:
    """Text tower"""

    text_model_builder: str = flag(
        "clip", "Library of the text tower; clip is this repository's CLIP.", choices=TEXT_BUILDERS
    )
    text_model: str = flag("RN50", "Architecture of the text tower, or a local folder.")
    text_model_tag: str = flag(
        "", "Tag of the published text weights, for --pretrained_text_model [openai for openclip and clip]; with "
            "--text_weights, the tag that the file has.",
    )  # fmt: skip
    pretrained_text_model: bool = flag(
        False, "Start the text tower from published weights, found in --cache_dir or in the folder."
    )
    text_weights: str | None = flag(None, "File with the weights of the text tower.")
    text_vocab: str | None = flag(
        None, "Folder with a vocab.txt, for a clip text tower with WordPiece instead of CLIP's byte pairs."
    )
    text_pooler: str = flag("cls", "Pooling of a huggingface text tower.", choices=POOLERS)
    max_seq_length: int = flag(77, "Largest number of tokens of a text.", at_least=1)
    text_head_n_layers: int = flag(
        0, "Layers of the text projection head: 0 no head, 1 linear, 2 or more DINO's MLP.", at_least=0
    )


@dataclass
class TextTrainingFlags(TextTowerFlags):
    """Training of the text tower"""

    prompt: bool = flag(False, "CoOp: trainable prompt vectors after the start token.")
    n_prompt: int = flag(4, "Number of prompt vectors.")
    adapter: str | None = flag(
        None, "Adapter in a huggingface text tower, whose own weights are frozen; dummy is compacter.", choices=ADAPTERS
    )
    lock_text_model: bool = flag(False, "Freeze the text tower; its head trains.")
    unlock_text_model: bool = flag(False, "Train the text tower, as without --lock_text_model.")
    lock_text_partial: str = flag(
        "", "Freeze text-tower parameters whose name contains a keyword; 'kw,!kw' trains those of the second again."
    )


@dataclass
class SharedTowerFlags:
    """Both towers"""

    joint_projection_dim: int = flag(1024, "Width of the joint space, where both towers have a head.")
    force_quick_gelu: bool = flag(False, "Use OpenAI's approximation of GELU, whatever the architecture's name says.")
    cache_dir: str = flag("cache/weights", "Folder of published weights; nothing is downloaded.")
    load: str | None = flag(
        None, "Checkpoint of a whole dual encoder to start from: epoch_N.pt, or open_clip's with clip towers."
    )

    def towers(self):
        """The `DualSpec` of all flags of towers."""
        from clip_vl.models.dual.spec import dual_spec

        return dual_spec(vars(self), given(self))


@dataclass
class DualOptimFlags:
    """Optimisation"""

    temperature: float = flag(
        0.07, "First temperature of the similarities; pretrained text weights bring their own.", "--logit_scale"
    )
    batch_size: int = flag(64, "Pairs per process and micro-batch.", at_least=1)
    epochs: int = flag(32, "Epochs: passes over the training data, or episodes.", at_least=1)
    stop_after_epoch: int | None = flag(None, "Last epoch of this run, on the schedule of --epochs.", at_least=1)
    lr: float = flag(5e-4, "Peak learning rate.", at_least=0)
    opt: str = flag("adamw", "Optimizer: adamw, sgd, or another of timm's, also with the prefix lookahead_.")
    beta1: float | None = flag(None, "First beta of Adam [0.9].")
    beta2: float | None = flag(None, "Second beta of Adam [0.98 for image models with vit in their name, else 0.999].")
    eps: float | None = flag(None, "Epsilon of Adam [1e-6 for image models with vit in their name, else 1e-8].")
    weight_decay: float = flag(
        0.2, "Decoupled weight decay of matrices; norms, biases and temperatures have none.", "--wd", at_least=0
    )
    layer_decay_image: float = flag(
        1.0, "Factor of the learning rate from each layer of the image tower to the layer below."
    )
    layer_decay_text: float = flag(
        1.0, "Factor of the learning rate from each layer of the text tower to the layer below."
    )
    warmup: int = flag(
        10000, "Steps of linear warm-up, at most those of the run; a cosine to 0 follows.", at_least=0
    )
    max_grad_norm: float = flag(1e16, "Joint L2 norm to which gradients are clipped.", "--clip_grad")
    gradient_accumulation_steps: int = flag(
        1, "Micro-batches per step; a pair's negatives are those of its micro-batch.", at_least=1
    )
    precision: str = flag(
        "amp", "Precision of training: amp is bfloat16 where the device is fast at it; fp16 has a gradient scaler.",
        choices=PRECISIONS,
    )  # fmt: skip
    compile: bool = flag(False, "Compile the towers with torch.compile.")
    use_bn_sync: bool = flag(False, "Compute BatchNorm statistics over all processes (GPUs only).")
    apex: bool = flag(
        False, "Use NVIDIA apex's fused Adam and layer norm, on GPUs where apex is installed; the run says which."
    )
    max_skipped: int = flag(50, "Steps skipped for a non-finite loss or gradient after which the run stops.")

    bf16 = property(lambda flags: {"amp": None, "bf16": True}.get(flags.precision, False))
    fp16 = property(lambda flags: flags.precision == "fp16")

    def steps(self):
        """The `StepSettings` of these flags."""
        from clip_vl.engine.optim import StepSettings

        last = min(self.stop_after_epoch or self.epochs, self.epochs)
        return values_of(self, StepSettings, last_epoch=last, accumulate=self.gradient_accumulation_steps)


@dataclass
class PublishedRunFlags:
    """Name of the run and its checkpoints"""

    IGNORED = ITRA
    logs: str | None = flag(None, "Folder of run folders: with --name, the run folder is LOGS/NAME.")
    name: str | None = flag(None, "Name of the run folder.")
    save_frequency: int = flag(1, "Epochs between two epoch_N.pt; the last one is always written.", at_least=1)


def recalled(args):
    """The flags, with what the command line leaves open taken from the checkpoint of --load; refuses contradictions."""
    from clip_vl.engine.errors import UserError

    if args.load:
        from clip_vl.models.dual.settings import read_dual_settings, recall_dual

        values, known = recall_dual(read_dual_settings(args.load), dataclasses.asdict(args), given(args)), given(args)
        args = dataclasses.replace(args, **values)
        args.given = known
    for side in ("image", "text"):
        if getattr(args, f"lock_{side}_model", False) and getattr(args, f"unlock_{side}_model"):
            raise UserError(f"--lock_{side}_model and --unlock_{side}_model exclude each other; pass one of them")
    if getattr(args, "adapter", None) and args.text_model_builder != "huggingface":
        raise UserError(f"--adapter {args.adapter} needs --text_model_builder huggingface")
    if getattr(args, "temperature", 1) <= 0:
        raise UserError(f"--temperature {args.temperature} must be above 0")
    return args


def warn_of_unused(args, readers):
    """Say which flags were given that nothing reads. readers: {flag: (does something read it, what would)}"""
    import sys

    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name, (is_read, reader) in readers.items():
        if not is_read and getattr(args, name) != defaults[name]:
            print(f"warning: --{name} has no effect; it is for {reader}", file=sys.stderr)


def tower_readers(args):
    """For `warn_of_unused`: the flags of towers and heads that only some builders read."""
    texts, images = args.text_model_builder, args.image_model_builder
    clip = texts in ("clip", "openclip") or images in ("clip", "openclip")
    return {
        "text_pooler": (texts == "huggingface", "--text_model_builder huggingface"),
        "n_prompt": (args.prompt, "--prompt"),
        "logs": (args.output is None, "runs without --output"),
        "name": (args.output is None, "runs without --output"),
        "force_quick_gelu": (clip, "CLIP's towers"),
    }


def name_output(args, program):
    """Set --output from --logs and --name where it is not given: LOGS/NAME, or snap/<program>/NAME."""
    if args.output is None:
        args.output = f"{args.logs or f'snap/{program}'}/{args.name or 'test'}"


def warn_of_name(args):
    """Say where a name like L[RN50]-U[BERT], by which published runs say the locked and the unlocked tower, is wrong."""
    import re
    import sys

    name = args.name or args.output
    found = re.search(r"([LU])\[[^]]*]-([LU])\[", name)
    for side, said in zip(("image", "text"), found.groups() if found else ()):
        if (said == "L") != getattr(args, f"lock_{side}_model"):
            says, is_ = ("locked", "learns") if said == "L" else ("learning", "is locked")
            print(f"warning: the name {name} calls the {side} tower {says}; by the flags it {is_}", file=sys.stderr)
