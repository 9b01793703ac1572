"""Dual encoders in files of open_clip and OpenAI: names of weights, and the preprocessing of published towers."""

import torch

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.activations import openclip_name, published_preprocessing
from clip_vl.models.dual.settings import read_dual_settings
from clip_vl.models.loading.state_dicts import is_archive
from clip_vl.models.towers.pixels import describe, published_pixels

CLIP_CONSTANTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # in published files, no weights


def to_our_names(state, path):
    """open_clip's or OpenAI's state dict -> ours; archives have OpenAI's GELU. UserError where it is neither's."""
    if not any(name.startswith("visual.") for name in state):
        found = ", ".join(ascii(name[:60])[1:-1] for name in list(state)[:3])
        is_transformers = any(name.startswith("text_model.") for name in state)
        hint = "; `python -m clip_vl.convert FOLDER ours.pt` reads the folder of a CLIPModel" * is_transformers
        raise UserError(
            f"{path} is no dual encoder's: it has no weight named image_tower. or text_tower., nor visual., but "
            f"{found} ...{hint}"
        )
    state = dict(_our_name(name, tensor) for name, tensor in state.items() if name not in CLIP_CONSTANTS)
    quick = read_dual_settings(path).values.get("quick_gelu", [int(is_archive(path))] * 2)
    return state | {"quick_gelu": torch.tensor(quick, dtype=torch.uint8)}


def _our_name(name, tensor):
    if name in ("logit_scale", "logit_bias"):
        return name, tensor
    side = "image_tower." if name.startswith("visual.") else "text_tower."
    return side + name.removeprefix("visual.").removeprefix("text."), tensor  # open_clip's CustomTextCLIP has `text.`


def to_inner_names(state, model):
    """The state with the names of open_clip's own modules, which towers of the openclip builder hold as `model`."""
    own = model.state_dict()

    def inner(name):
        side, _, rest = name.partition(".")
        return name if name in own or f"{side}.model.{rest}" not in own else f"{side}.model.{rest}"

    return {inner(name): tensor for name, tensor in state.items()}


def describe_as_published(tower, name):
    """An image tower with weights from such a file -> with the preprocessing of its published weights, if any."""
    entry = published_preprocessing(openclip_name(name), weights=True)
    return describe(tower, tower.width, published_pixels(entry, tower.resolution)) if entry else tower
