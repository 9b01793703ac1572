"""What a dual encoder is built from, as values: two towers, their weights, their heads.

    spec = dual_spec({"image_model": "ViT-B-32", "text_model": "ViT-B-32", "load": "epoch_32.pt"})
    model = build_dual_encoder(spec)
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TowerSpec:
    """A tower by its builder and the builder's name for it; arguments as for `build_image_tower`, `build_text_tower`.

    quick_gelu:   OpenAI's GELU; None: as the file of weights or the checkpoint says
    head_layers:  0 no head, 1 linear, 2 or more an MLP
    locked:       freeze the tower;  locked_parts: words in the names of the parameters to freeze, as `lock_partial`'s
    """

    builder: str = "clip"
    name: str = "RN50"
    tag: str = ""
    pretrained: bool = False
    weights: str | None = None
    cache_dir: str | None = None
    quick_gelu: bool | None = None
    head_layers: int = 0
    locked: bool = False
    locked_parts: str = ""


@dataclass(frozen=True)
class ImageTowerSpec(TowerSpec):
    """resolution: None for the tower's own;  checkpointing: recompute activations in the backward pass"""

    resolution: int | None = None
    checkpointing: bool = False


@dataclass(frozen=True)
class TextTowerSpec(TowerSpec):
    """vocab: folder of a vocab.txt;  vocab_counts: take its words, whatever the checkpoint says"""

    pooler: str = "cls"
    max_length: int = 77
    vocab: str | None = None
    vocab_counts: bool = False
    prompt: bool = False
    n_prompt: int = 4
    adapter: str | None = None


@dataclass(frozen=True)
class DualSpec:
    """Two towers that meet in one space.

    joint_width: where both have a head;  temperature: the first one;  load: checkpoint of the whole model
    seed:        of the first weights
    """

    image: ImageTowerSpec = field(default_factory=ImageTowerSpec)
    text: TextTowerSpec = field(default_factory=TextTowerSpec)
    joint_width: int = 1024
    temperature: float = 0.07
    load: str | None = None
    seed: int = 0


@dataclass(frozen=True)
class Projection:
    """ProtoCLIP's projections above the heads: hidden layers, their width, and the width of the output."""

    layers: int = 1
    hidden: int = 2048
    width: int = 128


@dataclass(frozen=True)
class LossNeeds:
    """What a loss needs besides towers and heads.

    scale, bias: a trainable temperature, SigLIP's bias;  prototypes: their number, 0 for none
    two_texts:   each text encoded twice, for SimCSE;  one_way: the tower ("image", "text") that gets no gradient
    """

    scale: bool = False
    bias: bool = False
    prototypes: int = 0
    projection: Projection | None = None
    two_texts: bool = False
    one_way: str | None = None


# The name of each field among flags and the settings of checkpoints.
TOWER = {"builder": "{}_model_builder", "name": "{}_model", "tag": "{}_model_tag", "pretrained": "pretrained_{}_model",
         "weights": "{}_weights", "head_layers": "{}_head_n_layers", "locked": "lock_{}_model",
         "locked_parts": "lock_{}_partial", "cache_dir": "cache_dir"}  # fmt: skip
IMAGE = {field: name.format("image") for field, name in TOWER.items()} | {
    "resolution": "image_resolution", "checkpointing": "grad_checkpointing"}  # fmt: skip
TEXT = {field: name.format("text") for field, name in TOWER.items()} | {
    "pooler": "text_pooler", "max_length": "max_seq_length", "vocab": "text_vocab", "prompt": "prompt",
    "n_prompt": "n_prompt", "adapter": "adapter"}  # fmt: skip
BOTH = {"joint_width": "joint_projection_dim", "temperature": "temperature", "load": "load", "seed": "seed"}


def dual_spec(values, given=frozenset()):
    """The `DualSpec` of values by the names of flags; what is not there has its default.

    given: names of the flags on the command line: these count whatever a checkpoint says
    """

    def take(names):
        return {field: values[name] for field, name in names.items() if name in values}

    forced = bool(values.get("force_quick_gelu"))
    quick = {"quick_gelu": forced if forced or "force_quick_gelu" in given else None}
    text = TextTowerSpec(**take(TEXT), **quick, vocab_counts="text_vocab" in given)
    return DualSpec(ImageTowerSpec(**take(IMAGE), **quick), text, **take(BOTH))


def flags_of(spec):
    """{name of the flag: value} of a `DualSpec`, as `dual_spec` takes them."""
    values = {"force_quick_gelu": bool(spec.image.quick_gelu)}
    for part, names in ((spec.image, IMAGE), (spec.text, TEXT), (spec, BOTH)):
        values |= {name: getattr(part, field) for field, name in names.items()}
    return values
