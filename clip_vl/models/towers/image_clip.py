"""Our own rendering of CLIP's image towers with their pooling (arXiv:2103.00020, section 2.4), under OpenAI's names.

A ResNet's last grid is pooled by attention, a transformer's class token is projected; features are those of open_clip
with the same weights.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from clip_vl.engine.errors import UserError, nearest
from clip_vl.models.attention import attend
from clip_vl.models.clip.activations import openclip_name, published_preprocessing, resolve_quick_gelu
from clip_vl.models.clip.grid import GridConfig, ModifiedResNet
from clip_vl.models.clip.vit import HEAD_WIDTH, PooledVisionTransformer, ViTConfig, resize_positions
from clip_vl.models.loading.pretrained_files import load_tower, openclip_file
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.towers.pixels import describe, published_pixels

PLAIN_KEYS = {"image_size", "layers", "width", "patch_size", "head_width", "mlp_ratio"}
SMALL = {  # ours, for scenes of 96 to 128 pixels, in the form of open_clip's configurations
    "RN-tiny": {"layers": [1, 1, 1, 1], "width": 16, "image_size": 128},  # 4 x 4 cells
    "RN-micro": {"layers": [1, 1, 1], "width": 16, "image_size": 96},  # 6 x 6 cells
    "ViT-tiny": {"layers": 6, "width": 192, "patch_size": 16, "image_size": 112},  # 7 x 7 patches
}
SMALL_EMBED_DIM = 256


class ImageConfig(NamedTuple):
    """A tower's shape, its output width, the side of its images, and whether its GELU is OpenAI's."""

    grid: GridConfig | ViTConfig
    head_width: int
    embed_dim: int
    resolution: int
    quick_gelu: bool


def image_config(name):
    """The ImageConfig of a plain CLIP architecture: open_clip's names, also spelt "ViT-B/32", and our small ones."""
    vision, embed_dim, quick_gelu = _vision_config(name)
    head_width, side = vision.get("head_width", HEAD_WIDTH), vision["image_size"]
    if isinstance(vision["layers"], list):
        grid = GridConfig(tuple(vision["layers"]), vision["width"])
    else:
        patch, ratio = vision["patch_size"], vision.get("mlp_ratio", 4.0)
        grid = ViTConfig(vision["layers"], vision["width"], patch, side // patch, head_width, ratio)
    return ImageConfig(grid, head_width, embed_dim, side, quick_gelu)


def resolution_of(name, state):
    """The side of the images of a checkpoint's clip tower, from its table of positions; None where it has none.

    state: our names, with "image_tower." before those of the tower
    """
    names = ("image_tower.positional_embedding", "image_tower.attnpool.positional_embedding")
    cells = next((len(state[table]) - 1 for table in names if table in state), 0)
    return round(cells**0.5) * image_config(name).grid.stride or None


def _vision_config(name):
    if name in SMALL:
        return SMALL[name], SMALL_EMBED_DIM, False
    import open_clip

    config = open_clip.get_model_config(openclip_name(name))
    if config is None:
        raise UserError(
            f"{name} is no architecture of open_clip's and none of {', '.join(SMALL)}; "
            f"open_clip.list_models() names open_clip's{nearest(name, [*SMALL, *open_clip.list_models()])}"
        )
    foreign = sorted(set(config["vision_cfg"]) - PLAIN_KEYS)
    if foreign:
        raise UserError(
            f"{name} is not a plain CLIP image tower (its configuration has {', '.join(foreign)}): "
            "build it with the openclip builder"
        )
    return config["vision_cfg"], config["embed_dim"], config.get("quick_gelu", False)


def build_clip_tower(name, *, tag="", pretrained=False, resolution=None, cache_dir=None, weights=None,
                     quick_gelu=False, checkpointing=False):  # fmt: skip
    """Our tower of a plain CLIP architecture; arguments as for `build_image_tower`."""
    config = image_config(name)
    if pretrained and not weights:
        weights = openclip_file(openclip_name(name), tag, cache_dir)
    quick_gelu = resolve_quick_gelu(openclip_name(name), config.quick_gelu, quick_gelu, tag, weights)
    resolution = resolution or config.resolution
    tower = _build(config, resolution, quick_gelu, checkpointing)
    if weights:
        state = _visual_state(read_state_dict(weights))
        load_tower(tower, _fit_positions(state, tower.state_dict()), f"{weights} (image tower {name})")
    tower.activation = "quick_gelu" if quick_gelu else "gelu"
    entry = {} if name in SMALL else published_preprocessing(openclip_name(name), tag, weights)
    return describe(tower, config.embed_dim, published_pixels(entry, resolution))


def _build(config, resolution, quick_gelu, checkpointing):
    cells = resolution // config.grid.stride
    if cells == 0:
        raise UserError(f"images of {resolution} pixels are smaller than one {config.grid.stride}-pixel cell")
    if isinstance(config.grid, GridConfig):
        return PooledResNet(config.grid, config.embed_dim, cells, config.head_width, checkpointing)
    grid = replace(config.grid, positions=cells)
    return PooledVisionTransformer(grid, config.embed_dim, checkpointing, quick_gelu)


def _visual_state(state):
    """The image half of a CLIP state dict, without "visual."; a file of an image tower alone stays as it is."""
    visual = {key.removeprefix("visual."): value for key, value in state.items() if key.startswith("visual.")}
    return visual or state


def _fit_positions(state, own):
    """Position tables resized to the model's grid."""
    for key in ("positional_embedding", "attnpool.positional_embedding"):
        if key in state and key in own and len(state[key]) != len(own[key]):
            side = round((len(own[key]) - 1) ** 0.5)
            state[key] = resize_positions(state[key].float(), side, side)
    return state


class PooledResNet(ModifiedResNet):
    """CLIP's ResNet whole: the grid pooled by attention, with the parameter names of `visual`.

    cells: the side of the square grid that the pool's position table is for
    """

    def __init__(self, grid, embed_dim, cells, head_width=HEAD_WIDTH, checkpoint_backbone=False):
        super().__init__(grid.layers, grid.width, checkpoint_backbone=checkpoint_backbone)
        self.attnpool = AttentionPool(grid.grid_dim, embed_dim, cells, grid.grid_dim // head_width)

    def forward(self, images):
        """images: float (N, 3, H, W), normalised -> (N, embed_dim), not L2-normalised."""
        return self.attnpool(super().forward(images))


class AttentionPool(nn.Module):
    """Attention pooling: the query is the mean of the cells; keys and values are the mean and all cells."""

    def __init__(self, width, embed_dim, cells, heads):
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(cells**2 + 1, width) * width**-0.5)
        self.q_proj, self.k_proj, self.v_proj = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.c_proj = nn.Linear(width, embed_dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.c_proj):
            nn.init.normal_(projection.weight, std=width**-0.5)

    def forward(self, grid_features):
        """grid_features: (N, C, h, w) -> (N, embed_dim)."""
        cells = grid_features.shape[-2:]
        x = grid_features.flatten(2).transpose(1, 2)  # (N, h w, C)
        x = torch.cat([x.mean(1, keepdim=True), x], dim=1)
        x = x + resize_positions(self.positional_embedding, *cells).to(x.dtype)
        query, key, value = self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x)  # only the output of the mean is used
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        return self.c_proj(attend(query, key, value).transpose(1, 2).flatten(1))
