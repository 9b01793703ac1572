"""CLIP's vision transformer (arXiv:2103.00020, section 2.4; arXiv:2010.11929) as a grid encoder, for any canvas."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clip_vl.models.attention import attend

HEAD_WIDTH = 64


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer's shape; `positions` is the side of the square grid its position table was learned on."""

    layers: int
    width: int
    patch: int
    positions: int

    @property
    def grid_dim(self):
        """Channels C of the grid features."""
        return self.width

    @property
    def stride(self):
        """Pixels per grid cell along one side."""
        return self.patch


class VisionTransformer(nn.Module):
    """Patches and a class token through pre-norm layers; parameter names as in CLIP's `visual`, without its projection.

    checkpoint_backbone keeps only each layer's input and recomputes the rest.
    """

    def __init__(self, config, checkpoint_backbone=False):
        super().__init__()
        self.config, self.checkpoint_backbone = config, checkpoint_backbone
        D = config.width
        self.conv1 = nn.Conv2d(3, D, config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(D**-0.5 * torch.randn(D))
        self.positional_embedding = nn.Parameter(D**-0.5 * torch.randn(config.positions**2 + 1, D))
        self.ln_pre = nn.LayerNorm(D)
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(Block(D) for _ in range(config.layers))})
        self.ln_post = nn.LayerNorm(D)

    def forward(self, images):
        """images: float (N, 3, H, W), normalised -> grid_features (N, C, H // patch, W // patch), after the final norm.

        The class token takes part in attention and is left out of the grid.
        """
        patches = self.conv1(images)
        rows, columns = patches.shape[-2:]
        class_token = self.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)  # (N, 1 + h w, D)
        x = self.ln_pre(x + resize_positions(self.positional_embedding, rows, columns).to(x.dtype))
        for block in self.transformer["resblocks"]:
            if self.checkpoint_backbone:
                x = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
            else:
                x = block(x)
        return self.ln_post(x[:, 1:]).transpose(1, 2).unflatten(2, (rows, columns))


def resize_positions(table, rows, columns):
    """A position table for another grid: bicubic, row by row of the picture; the class token's entry stays.

    table: (1 + n * n, D), the class token first, then an n x n grid, row-major -> (1 + rows * columns, D)
    """
    side = round((len(table) - 1) ** 0.5)
    if (rows, columns) == (side, side):
        return table
    grid = table[1:].unflatten(0, (side, side)).permute(2, 0, 1)[None]  # (1, D, n, n)
    grid = F.interpolate(grid, (rows, columns), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([table[:1], grid[0].flatten(1).T])


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width):
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = SelfAttention(width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](hidden * torch.sigmoid(1.702 * hidden))  # OpenAI's approximation of GELU


class SelfAttention(nn.Module):
    """Query, key and value from one matrix, under the names of `nn.MultiheadAttention`."""

    def __init__(self, width):
        super().__init__()
        self.heads = width // HEAD_WIDTH
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x):
        """x: (N, L, D) -> (N, L, D)."""
        projected = F.linear(x, self.in_proj_weight, self.in_proj_bias).unflatten(-1, (3, self.heads, HEAD_WIDTH))
        query, key, value = projected.permute(2, 0, 3, 1, 4)  # (N, heads, L, d) each
        return self.out_proj(attend(query, key, value).transpose(1, 2).flatten(2))
