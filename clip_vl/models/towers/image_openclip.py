"""The visual half of any open_clip architecture; the text half is never built."""

from pathlib import Path
from types import SimpleNamespace

from clip_vl.engine.errors import DataError, UserError, nearest
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.models.clip.activations import published_preprocessing, resolve_quick_gelu
from clip_vl.models.loading.pretrained_files import OPENCLIP_FILES, find_file, load_tower, openclip_file
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.towers.pixels import describe, measure_width, published_pixels
from clip_vl.models.towers.pooled import PooledTower


def build_openclip_tower(name, *, tag="", pretrained=False, resolution=None, cache_dir=None, weights=None,
                         quick_gelu=False, checkpointing=False):  # fmt: skip
    """open_clip's own visual tower, with its preprocessing; arguments as for `build_image_tower`."""
    from open_clip.model import _build_vision_tower  # `create_model` would draw the text tower's weights as well

    config, preprocessing, name = _read_config(name, tag, weights)
    if pretrained and not weights:
        weights = _file(name, tag, cache_dir)
    vision = dict(config["vision_cfg"])
    trunk = vision.get("timm_model_name")
    if trunk and quick_gelu:
        raise UserError(f"quick_gelu is for CLIP's own architectures; {name} is timm's {trunk}")
    quick_gelu = resolve_quick_gelu(name, config.get("quick_gelu", False), quick_gelu, tag, weights)
    if resolution and not trunk:
        vision["image_size"] = resolution
    visual = _build_vision_tower(
        config["embed_dim"], vision | ({"timm_model_pretrained": False} if trunk else {}), quick_gelu
    )
    if weights:
        load_tower(visual, _visual_state(visual, weights), f"{weights} (image tower {name})")
    if resolution and trunk:
        visual.set_input_size(resolution)
    tower = PooledTower(visual)
    tower.activation = trunk or ("quick_gelu" if quick_gelu else "gelu")
    if checkpointing:
        _recompute(visual, name)
    resolution = resolution or vision.get("image_size", 224)
    return describe(tower, measure_width(tower, resolution, name), published_pixels(preprocessing, resolution))


def _read_config(name, tag, weights=None):
    """(architecture, preprocessing, open_clip's spelling) of a name, or of a folder with open_clip_config.json."""
    import open_clip

    path = Path(name) / "open_clip_config.json"
    if path.is_file():
        try:
            config = parse_json(path.read_bytes())
            return config["model_cfg"], config.get("preprocess_cfg", {}), name
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path} is not open_clip's configuration: it has no model_cfg ({error})") from error
    name = name.replace("/", "-").replace("@336px", "-336")
    config = open_clip.get_model_config(name) if name in open_clip.list_models() else None
    if config is None:
        raise UserError(
            f"{name} is no architecture of open_clip's (open_clip.list_models() names them) and no folder with an "
            f"open_clip_config.json{nearest(name, open_clip.list_models())}"
        )
    return config, published_preprocessing(name, tag, weights), name


def _file(name, tag, cache_dir):
    if Path(name).is_dir():
        return find_file(name, [Path(name) / file for file in OPENCLIP_FILES], OPENCLIP_FILES[0])
    return openclip_file(name, tag, cache_dir)


def _visual_state(visual, path):
    """The image half of a CLIP file, without "visual.", its position table resized to the model's grid."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import resize_pos_embed

    model = SimpleNamespace(visual=visual)  # all that open_clip's two functions look at
    state = convert_state_dict(model, read_state_dict(path))
    if not any(key.startswith("visual.") for key in state):
        state = {f"visual.{key}": value for key, value in state.items()}
    if "visual.positional_embedding" in state:
        state["visual.positional_embedding"] = state["visual.positional_embedding"].float()
        resize_pos_embed(state, model)
    return {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}


def _recompute(visual, name):
    from open_clip.modified_resnet import ModifiedResNet

    if isinstance(visual, ModifiedResNet):
        raise UserError(f"open_clip's {name} cannot recompute its activations; the clip builder's {name} can")
    visual.set_grad_checkpointing(True)
