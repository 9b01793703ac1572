"""timm's image models without their classifiers."""

import sys

from clip_vl.engine.errors import UserError, nearest
from clip_vl.models.loading.pretrained_files import load_tower, published_file
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.towers.pixels import Pixels, describe, measure_width
from clip_vl.models.towers.pooled import PooledTower

HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def build_timm_tower(name, *, tag="", pretrained=False, resolution=None, cache_dir=None, weights=None,
                     checkpointing=False):  # fmt: skip
    """A timm model with its pooling; arguments as for `build_image_tower`.

    The name may carry the tag (resnet50.a1_in1k).
    """
    from timm.data import resolve_model_data_config

    name = f"{name}.{tag}" if tag else name
    model = _create(name)
    if pretrained and not weights:
        weights = _file(name, model.pretrained_cfg, cache_dir)
    data = resolve_model_data_config(model)
    side = resolution or data["input_size"][-1]
    if resolution and hasattr(model, "set_input_size"):
        _resize(model, name, side)
    if weights:
        ignore = _classifier(model.pretrained_cfg)
        load_tower(model, _fit(read_state_dict(weights), model), f"{weights} (image tower {name})", ignore)
    if checkpointing:
        _recompute(model, name)
    tower = PooledTower(model)
    interpolation = data["interpolation"] if data["interpolation"] in ("bilinear", "bicubic") else "bicubic"
    crop = "squash" if data["crop_mode"] == "squash" else "short_side"
    pixels = Pixels(side, data["mean"], data["std"], interpolation, crop, int(side / data["crop_pct"]))
    return describe(tower, measure_width(tower, side, name), pixels)


def _create(name):
    import timm

    try:
        return timm.create_model(name, pretrained=False, num_classes=0)
    except (RuntimeError, ValueError) as error:  # an unknown architecture, an unknown tag
        hint = nearest(name.partition(".")[0], timm.list_models()) or "; timm.list_models() names its models"
        raise UserError(f"timm has no {name}: {error}{hint}") from error


def _file(name, config, cache_dir):
    import torch

    files = (config["hf_hub_filename"],) if config.get("hf_hub_filename") else HUB_FILES
    url, hub = config.get("url") or "", config.get("hf_hub_id") or ""
    if not hub and not url:
        raise UserError(f"timm's {name} has no published weights; name a tag, or give a file as weights")
    return published_file(f"timm's {name}", f"{torch.hub.get_dir()}/checkpoints", cache_dir, url, hub, files)


def _resize(model, name, side):
    try:
        model.set_input_size(img_size=(side, side))
    except Exception as error:  # each architecture's own assertion
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{name} cannot take images of {side} x {side} pixels: {reason}") from error


def _classifier(config):
    """Prefixes of the classifier's names in a file."""
    names = config.get("classifier") or ()
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _fit(state, model):
    """The architecture's own conversion of other authors' files and of position tables, where timm has one."""
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    return state if convert is None else convert(state, model)


def _recompute(model, name):
    try:
        model.set_grad_checkpointing(True)
    except (AssertionError, AttributeError) as error:
        raise UserError(f"timm's {name} cannot recompute its activations: {error}") from error
