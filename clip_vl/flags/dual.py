"""The flags of towers, and of evaluations of them, that programs share. No torch is imported here."""

import dataclasses
from dataclasses import dataclass

from clip_vl.flags.parser import flag, given

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


def changed(args, **values):
    """A copy of the flags with other values; which ones the command line holds stays known."""
    known, args = given(args), dataclasses.replace(args, **values)
    args.given = known
    return args


def recalled(args):
    """The flags, with what the command line leaves open taken from the checkpoint of --load; refuses contradictions."""
    from clip_vl.engine.errors import UserError

    if args.load:
        from clip_vl.models.dual.settings import read_dual_settings, recall_dual

        args = changed(args, **recall_dual(read_dual_settings(args.load), dataclasses.asdict(args), given(args)))
    for side in ("image", "text"):
        if getattr(args, f"lock_{side}_model", False) and getattr(args, f"unlock_{side}_model"):
            raise UserError(f"--lock_{side}_model and --unlock_{side}_model exclude each other; pass one of them")
    if getattr(args, "adapter", None) and args.text_model_builder != "huggingface":
        raise UserError(f"--adapter {args.adapter} needs --text_model_builder huggingface")
    if getattr(args, "temperature", 1) <= 0:
        raise UserError(f"--temperature {args.temperature} must be above 0")
    return args
