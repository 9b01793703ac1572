"""CLIP's vision transformer (arXiv:2103.00020, section 2.4; arXiv:2010.11929), for any canvas, as grid or pooled."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clip_vl.models.attention import PackedProjection, attend
from clip_vl.models.clip.quick_gelu import quick_gelu

HEAD_WIDTH = 64


@dataclass(frozen=True)
class ViTConfig:
    """A vision transformer's shape; `positions` is the side of the square grid its position table was trained on."""

    layers: int
    width: int
    patch: int
    positions: int
    head_width: int = HEAD_WIDTH
    mlp_ratio: float = 4.0

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

    checkpoint_backbone keeps only each layer's input and recomputes the rest. OpenAI's weights were trained with
    QuickGELU, most of the others with GELU: their shapes are the same, their features are not.
    """

    def __init__(self, config, checkpoint_backbone=False, quick_gelu=True):
        super().__init__()
        self.config, self.checkpoint_backbone = config, checkpoint_backbone
        D = config.width
        self.conv1 = nn.Conv2d(3, D, config.patch, stride=config.patch, bias=False)
        self.class_embedding = nn.Parameter(D**-0.5 * torch.randn(D))
        self.positional_embedding = nn.Parameter(D**-0.5 * torch.randn(config.positions**2 + 1, D))
        self.ln_pre = nn.LayerNorm(D)
        self.transformer = nn.ModuleDict(
            {"resblocks": nn.ModuleList(Block(config, quick_gelu) for _ in range(config.layers))}
        )
        self.ln_post = nn.LayerNorm(D)

    def forward(self, images):
        """images: float (N, 3, H, W), normalised -> grid_features (N, C, H // patch, W // patch), after the final norm.

        The class token takes part in attention and is left out of the grid.
        """
        x, cells = self._encode(images)
        return self.ln_post(x[:, 1:]).transpose(1, 2).unflatten(2, cells)

    def _encode(self, images, outputs=None):
        """(N, outputs, D), the first tokens (None: all) after the last layer, and the grid's (rows, columns)."""
        patches = self.conv1(images)
        cells = patches.shape[-2:]
        class_token = self.class_embedding.to(patches.dtype).expand(len(images), 1, -1)
        x = torch.cat([class_token, patches.flatten(2).transpose(1, 2)], dim=1)  # (N, 1 + h w, D)
        x = self.ln_pre(x + resize_positions(self.positional_embedding, *cells).to(x.dtype))
        *blocks, last = self.transformer["resblocks"]
        for block in blocks:
            x = self._run(block, x)
        return self._run(last, x, outputs), cells

    def _run(self, block, *inputs):
        if self.checkpoint_backbone:
            return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=False)
        return block(*inputs)


class PooledVisionTransformer(VisionTransformer):
    """The class token's last state, normalised and projected: CLIP's `visual` whole, with its parameter names."""

    def __init__(self, config, embed_dim, checkpoint_backbone=False, quick_gelu=False):
        super().__init__(config, checkpoint_backbone, quick_gelu)
        self.proj = nn.Parameter(config.width**-0.5 * torch.randn(config.width, embed_dim))
        self._initialise()

    def forward(self, images):
        """images: float (N, 3, H, W), normalised -> (N, embed_dim), not L2-normalised.

        Nothing reads the other tokens after the last layer, so that layer computes the class token alone.
        """
        x, _ = self._encode(images, outputs=1)
        return self.ln_post(x[:, 0]) @ self.proj

    def _initialise(self):
        """As CLIP's text tower (`initialize_parameters`): smaller the more layers add to the residual stream."""
        D, L = self.config.width, self.config.layers
        for block in self.transformer["resblocks"]:
            nn.init.normal_(block.attn.in_proj_weight, std=D**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * L * D) ** -0.5)
            nn.init.normal_(block.mlp["c_fc"].weight, std=(2 * D) ** -0.5)
            nn.init.normal_(block.mlp["c_proj"].weight, std=(2 * L * D) ** -0.5)
            nn.init.zeros_(block.attn.out_proj.bias)


def resize_positions(table, rows, columns):
    """A position table for another grid: bicubic, row by row of the image; the class token's entry stays.

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

    def __init__(self, config, quick_gelu):
        super().__init__()
        D, hidden = config.width, int(config.width * config.mlp_ratio)
        self.quick_gelu = quick_gelu
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn = SelfAttention(D, config.head_width)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(D, hidden), "c_proj": nn.Linear(hidden, D)})

    def forward(self, x, outputs=None):
        """x: (N, L, D) -> (N, L, D), or (N, outputs, D): the first tokens alone, which attend to all the same."""
        x = x[:, :outputs] + self.attn(self.ln_1(x), outputs)
        hidden = self.mlp["c_fc"](self.ln_2(x))
        return x + self.mlp["c_proj"](quick_gelu(hidden) if self.quick_gelu else F.gelu(hidden))


class SelfAttention(PackedProjection, nn.Module):
    """Query, key and value from one matrix, under the names of `nn.MultiheadAttention`."""

    def __init__(self, width, head_width=HEAD_WIDTH):
        super().__init__()
        self.heads = width // head_width
        self.in_proj_weight = nn.Parameter(torch.randn(3 * width, width) * width**-0.5)
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x, outputs=None):
        """x: (N, L, D) -> (N, L, D), or (N, outputs, D) for the first tokens alone."""
        if outputs is None:
            query, key, value = self._heads(x, 0, 3)  # (N, heads, L, d) each
        else:
            (query,), (key, value) = self._heads(x[:, :outputs], 0, 1), self._heads(x, 1, 3)
        return self.out_proj(attend(query, key, value).transpose(1, 2).flatten(2))

    def _heads(self, x, first, last):
        """Parts first..last of query, key and value -> (last - first, N, heads, L, d)."""
        projected = self.project(x, first, last)
        return projected.unflatten(-1, (last - first, self.heads, -1)).permute(2, 0, 3, 1, 4)
