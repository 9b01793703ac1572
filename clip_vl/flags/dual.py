"""The flags that the programs of the dual encoder share: towers, heads, optimisation. No torch is imported here."""

import dataclasses
from dataclasses import dataclass

from clip_vl.flags.parser import flag, given

BUILDERS_IMAGE = ("openclip", "torchvision", "timm", "clip")
BUILDERS_TEXT = ("openclip", "huggingface", "sbert", "clip")
AT_LEAST_ONE = ("batch_size", "epochs", "gradient_accumulation_steps", "report_step", "checkpoint_steps", "keep_last",
                "save_frequency", "stop_after_epoch", "max_steps", "image_resolution", "max_seq_length", "queue_size",
                "num_prototypes", "k")  # fmt: skip
AT_LEAST_ZERO = ("grad_cache", "image_head_n_layers", "text_head_n_layers", "projection_n_layers", "num_workers", "warmup",
                 "lr", "weight_decay", "episode_size", "lora_r")  # fmt: skip


@dataclass
class ImageTowerFlags:
    """Image tower"""

    image_model_builder: str = flag(
        "clip", "Where the image tower comes from: openclip, torchvision, timm, or clip for ours."
    )
    image_model: str = flag("RN50", "Its name there, such as RN50, mobilenet_v3_large, vit_small_patch16_224, RN-tiny.")
    image_model_tag: str = flag(
        "",
        "Which published weights, for --pretrained_image_model [openai for openclip and clip]; with --image_weights whose they are.",
    )
    pretrained_image_model: bool = flag(False, "Start from published weights, found in --cache_dir.")
    image_weights: str | None = flag(None, "File to read the image tower's weights from.")
    image_resolution: int | None = flag(None, "Pixels a side [the tower's own].")
    lock_image_model: bool = flag(False, "Freeze the image tower; its head still learns.")
    unlock_image_model: bool = flag(False, "Say that the image tower learns, as it does unless locked.")
    lock_image_partial: str = flag("", "Freeze parameters whose name contains a keyword; 'kw,!kw' with ! unfreezes.")
    image_head_n_layers: int = flag(0, "Layers of the projection head: 0 none, 1 linear, 2 or more a DINO MLP.")
    grad_checkpointing: bool = flag(False, "Recompute activations in the backward pass, in towers that can.")


@dataclass
class TextTowerFlags:
    """Text tower"""

    text_model_builder: str = flag(
        "clip", "Where the text tower comes from: openclip, huggingface, sbert, or clip for ours."
    )
    text_model: str = flag("RN50", "Its name there, or a local folder.")
    text_model_tag: str = flag(
        "",
        "Which published weights, for --pretrained_text_model [openai for openclip and clip]; with --text_weights whose they are.",
    )
    pretrained_text_model: bool = flag(False, "Start from published weights, found in --cache_dir or the folder.")
    text_weights: str | None = flag(None, "File to read the text tower's weights from.")
    text_vocab: str | None = flag(
        None, "Folder with a vocab.txt for a clip text tower over WordPiece instead of CLIP's BPE."
    )
    text_pooler: str = flag(
        "cls", "Sentence feature of a huggingface tower.", choices=["cls", "cls_before_pooler", "mean", "PromptBERT"]
    )
    max_seq_length: int = flag(77, "Tokens of a text at most.")
    lock_text_model: bool = flag(False, "Freeze the text tower; its head still learns.")
    unlock_text_model: bool = flag(False, "Say that the text tower learns, as it does unless locked.")
    lock_text_partial: str = flag("", "Freeze parameters whose name contains a keyword; 'kw,!kw' with ! unfreezes.")
    text_head_n_layers: int = flag(0, "Layers of the projection head: 0 none, 1 linear, 2 or more a DINO MLP.")
    prompt: bool = flag(False, "CoOp: learned vectors after the start token.")
    n_prompt: int = flag(4, "How many of them.")
    adapter: str | None = flag(None, "Adapter of a huggingface tower, whose own weights it freezes: bottleneck_adapter, "
                               "lang_adapter, prefix_tuning, dummy (compacter), lora_adapter, ia3_adapter, mam_adapter, unipelt.")  # fmt: skip


@dataclass
class SharedTowerFlags:
    """Both towers"""

    joint_projection_dim: int = flag(1024, "Width of the joint space where both sides have a head.")
    logit_scale: float = flag(0.07, "Temperature to start from; a text tower's own counts first.")
    force_quick_gelu: bool = flag(False, "OpenAI's approximation of GELU whatever the name says.")
    cache_dir: str = flag("cache/weights", "Folder where published weights are looked for; nothing is downloaded.")
    load: str | None = flag(
        None, "Checkpoint of a whole dual encoder to start from: epoch_N.pt, or open_clip's with clip towers."
    )


@dataclass
class DualOptimFlags:
    """Optimisation"""

    batch_size: int = flag(64, "Pairs per process and micro-batch.")
    epochs: int = flag(32, "Passes over the training data, or episodes.")
    stop_after_epoch: int | None = flag(None, "End after this epoch, on the schedule of --epochs.")
    lr: float = flag(5e-4, "Peak learning rate.")
    opt: str = flag("adamw", "Optimizer: adamw, sgd, or another of timm's, also with lookahead_ before it.")
    beta1: float | None = flag(None, "First beta of Adam [0.9].")
    beta2: float | None = flag(None, "Second beta of Adam [0.98 for image models with vit in their name, else 0.999].")
    eps: float | None = flag(None, "Epsilon of Adam [1e-6 for image models with vit in their name, else 1e-8].")
    weight_decay: float = flag(0.2, "Decoupled decay of matrices; none on norms, biases and temperatures.", "--wd")
    layer_decay_image: float = flag(
        1.0, "Factor of the learning rate from each layer of the image tower to the one below."
    )
    layer_decay_text: float = flag(1.0, "The same of the text tower.")
    warmup: int = flag(10000, "Updates with a rising learning rate, at most those of the run; then a cosine to 0.")
    max_grad_norm: float = flag(1e16, "Joint L2 norm to which gradients are clipped.", "--clip_grad")
    gradient_accumulation_steps: int = flag(
        1, "Micro-batches per update; the negatives of a pair are those of its own."
    )
    precision: str = flag(
        "amp",
        "amp is bfloat16 where the device is fast at it; fp16 has a gradient scaler.",
        choices=["amp", "bf16", "fp16", "fp32"],
    )
    compile: bool = flag(False, "torch.compile the towers.")
    use_bn_sync: bool = flag(False, "Batch statistics over all processes (GPUs).")
    apex: bool = flag(False, "NVIDIA apex's fused Adam and layer norm, on GPUs where apex is installed; the run says which.")
    max_skipped: int = flag(50, "Updates with a non-finite loss or gradient after which the run stops.")

    @property
    def bf16(self):
        return {"amp": None, "bf16": True}.get(self.precision, False)

    @property
    def fp16(self):
        return self.precision == "fp16"


@dataclass
class JudgeFlags:
    """Evaluation"""

    output: str | None = flag(None, "Folder for rows, results and report.")
    seed: int = flag(9595, "Seed of every random draw; the same on all ranks.")
    batch_size: int = flag(64, "Images or texts per process and forward pass.")
    num_workers: int = flag(0, "Loader workers of each process.", "--numWorkers", "--workers")
    precision: str = flag(
        "fp32", "Of the towers; scores are computed in float32 always.", choices=["amp", "bf16", "fp16", "fp32"]
    )
    datasets_dir: str = flag("data", "Folder of named data sets and of caches.", "--eval_data_dir")
    image_crop: str | None = flag(
        None, "How a picture is fitted into the square [the tower's own].", choices=["short_side", "squash", "pad"]
    )
    overwrite: bool = flag(False, "Start again; without it an interrupted evaluation goes on where it stopped.")
    tqdm: bool = flag(False, "Progress bar on a terminal.")

    @property
    def bf16(self):
        return {"amp": None, "bf16": True}.get(self.precision, False)

    @property
    def fp16(self):
        return self.precision == "fp16"


@dataclass
class PublishedRunFlags:
    """Published flags of the run"""

    logs: str | None = flag(None, "Folder of run folders: with --name, --output is LOGS/NAME.")
    name: str | None = flag(None, "Name of the run folder.")
    save_frequency: int = flag(1, "Epochs between two epoch_N.pt; the last one is always written.")
    save_most_recent: bool = flag(True, "Published flag: resumable checkpoints at each epoch's end; always on.")
    report_to: str = flag(
        "tensorboard", "Published flag: TensorBoard events, always written.", choices=["tensorboard", ""]
    )
    copy_codebase: bool = flag(
        False, "Published flag.", dead="args.json records the commit and whether files were changed"
    )
    local_loss: bool = flag(False, "Published flag: each process computes its rows of the logits; always so.")
    gather_with_grad: bool = flag(False, "Published flag: gradients reach every process's features; always so.")
    debug: bool = flag(False, "Published flag.", dead="every program reports alike")
    log_local: bool = flag(False, "Published flag.", dead="rank 0 writes the log")
    wandb_notes: str = flag("", "Published flag.", dead="TensorBoard has no notes")
    dist_url: str = flag("", "Published flag.", dead="torchrun's environment decides")
    dist_backend: str = flag("nccl", "Published flag.", dead="NCCL on GPUs, gloo on CPUs")
    no_set_device_rank: bool = flag(False, "Published flag.", dead="torchrun's environment decides")
    ddp_static_graph: bool = flag(False, "Published flag.", dead="it changes no result")
    find_unused_parameters: bool = flag(False, "Published flag.", dead="every parameter takes part")
    horovod: bool = flag(False, "Published flag.", dead="torchrun's environment decides")
    torchscript: bool = flag(False, "Published flag.", dead="--compile takes its place")
    trace: bool = flag(False, "Published flag.", dead="--compile takes its place")
    config_yaml: str = flag("", "Published flag.", dead="flags stand in scripts/recipes and in args.json")
    zeroshot_frequency: int = flag(
        0, "Published flag.", "--zeroshot_eval_frequency", dead="run clip_vl.zero_shot on an epoch_N.pt"
    )
    linear_frequency: int = flag(
        0, "Published flag.", "--linear_eval_frequency", dead="run clip_vl.linear_probe on an epoch_N.pt"
    )
    linear_prob_mode: str = flag("", "Published flag.", dead="clip_vl.linear_probe has one")
    C: float = flag(3.16, "Published flag.", dead="it is a flag of clip_vl.linear_probe")
    nlp_eval_frequency: int = flag(0, "Published flag.", dead="sentence evaluations are not there yet")
    eval_with_wise_ft: float = flag(
        1.0, "Published flag.", dead="interpolation with the first weights is not there yet"
    )
    visualize_frequency: int = flag(-1, "Published flag.", dead="the original never read it")
    skip_scheduler: bool = flag(False, "Published flag.", dead="the original never read it")


def check_dual_flags(args):
    """Take over a checkpoint's settings, lower-case builder names, and refuse what cannot work, before anything is built."""
    from clip_vl.engine.errors import UserError

    recall_flags(args)
    for side, builders in (("image", BUILDERS_IMAGE), ("text", BUILDERS_TEXT)):
        name = f"{side}_model_builder"
        setattr(args, name, getattr(args, name).lower())
        if getattr(args, name) not in builders:
            raise UserError(f"--{name} {getattr(args, name)} is not one of {', '.join(builders)}")
        if getattr(args, f"lock_{side}_model") and getattr(args, f"unlock_{side}_model"):
            raise UserError(f"--lock_{side}_model and --unlock_{side}_model exclude each other; pass one of them")
    if args.adapter and args.text_model_builder != "huggingface":
        raise UserError(f"--adapter {args.adapter} needs --text_model_builder huggingface")
    for name in AT_LEAST_ONE:
        value = getattr(args, name, None)
        if value is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    for name in AT_LEAST_ZERO:
        if getattr(args, name, 0) < 0:
            raise UserError(f"--{name} is {getattr(args, name)}; it must be at least 0")
    if args.logit_scale <= 0:
        raise UserError(f"--logit_scale {args.logit_scale} is a temperature: it must be above 0")


def setting_names():
    """The flags that say how the towers and heads of a checkpoint are built, and how its images are cropped."""
    every = [f.name for cls in (ImageTowerFlags, TextTowerFlags, SharedTowerFlags) for f in dataclasses.fields(cls)]
    others = ("pretrained_", "lock_", "unlock_", "load", "grad_", "cache_")  # of a run, not of what it makes
    return [name for name in (*every, "image_crop") if not name.startswith(others) and not name.endswith("_weights")]


def recall_flags(args):
    """Take what the command line leaves open from the settings of the checkpoint of --load."""
    from clip_vl.models.dual.settings import read_dual_settings, recall_dual

    if args.load:
        settings = read_dual_settings(args.load)
        for name, value in recall_dual(settings, dataclasses.asdict(args), given(args), setting_names()).items():
            setattr(args, name, value)


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
