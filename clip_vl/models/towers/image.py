"""Image towers by name, from four libraries: open_clip, torchvision, timm and this one.

Every tower has its preprocessing (`resolution`, `mean`, `std`, `interpolation`, `crop`, `short_side`) and its output
width (`width`) as attributes. Weights come from files on this machine; nothing is fetched.
"""

from clip_vl.engine.errors import UserError

BUILDERS = ("openclip", "torchvision", "timm", "clip")


def build_image_tower(builder, name, *, quick_gelu=False, **options):
    """An image tower: normalised float (B, 3, H, W) -> (B, width), not L2-normalised.

    builder:       one of BUILDERS
    name:          the library's name of the architecture; for openclip also a folder with open_clip_config.json
    tag:           which published weights (openai, IMAGENET1K_V1, a1_in1k): decides statistics and GELU; default ""
    pretrained:    load the tag's weights from cache_dir or the library's own cache; default False
    weights:       a file to load instead of published weights; default None
    resolution:    side of the images, where it is not the architecture's; default None
    cache_dir:     folder that is searched before the library's own cache; default None
    quick_gelu:    OpenAI's GELU (openclip and clip)
    checkpointing: default False; keep only the inputs of blocks and recompute the rest in the backward pass
    """
    if builder in ("clip", "openclip"):
        options["quick_gelu"] = quick_gelu
    elif quick_gelu:
        raise UserError(f"quick_gelu is for CLIP's architectures; {builder}'s {name} has its own activation")
    return _builder(builder)(name, **options)


def _builder(builder):
    if builder == "clip":
        from clip_vl.models.towers.image_clip import build_clip_tower as build
    elif builder == "openclip":
        from clip_vl.models.towers.image_openclip import build_openclip_tower as build
    elif builder == "torchvision":
        from clip_vl.models.towers.image_torchvision import build_torchvision_tower as build
    elif builder == "timm":
        from clip_vl.models.towers.image_timm import build_timm_tower as build
    else:
        raise UserError(f"image builder {builder!r} is none of {', '.join(BUILDERS)}")
    return build
