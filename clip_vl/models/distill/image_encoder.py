"""Data2Vec2's image encoder (arXiv:2212.07525): patches, fixed positions, a class token and the first n blocks."""

from dataclasses import dataclass

import torch
from torch import nn

from clip_vl.models.distill.blocks import EPS, PostNormBlock


@dataclass(frozen=True)
class ImageEncoderSpec:
    """Sizes of an image encoder; the defaults are the first half of Data2Vec2's ViT-B/16."""

    blocks: int = 6
    width: int = 768
    heads: int = 12
    hidden: int = 3072
    patch: int = 16
    resolution: int = 224

    @property
    def side(self):
        """Patches along one side."""
        return self.resolution // self.patch


class PatchEmbedding(nn.Module):
    def __init__(self, patch, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, images):
        """images: (B, 3, H, W) -> (B, patches, D)."""
        return self.proj(images).flatten(2).transpose(1, 2)


class ImageEncoder(nn.Module):
    """Parameter names are timm's. The position table is a sin-cos table and is not trained."""

    def __init__(self, spec):
        super().__init__()
        self.spec, D = spec, spec.width
        self.patch_embed = PatchEmbedding(spec.patch, D)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, D))
        self.pos_embed = nn.Parameter(sine_positions(spec.side, D), requires_grad=False)
        self.norm_pre = nn.LayerNorm(D, eps=EPS)
        self.blocks = nn.ModuleList(PostNormBlock(D, spec.heads, spec.hidden) for _ in range(spec.blocks))

    def embed(self, images):
        """images: (B, 3, H, W), normalised -> (B, 1 + patches, D), the class token first."""
        patches = self.patch_embed(images)
        patches = patches + self.pos_embed.to(patches.dtype)
        tokens = torch.cat([self.cls_token.to(patches.dtype).expand(len(images), 1, -1), patches], 1)
        return self.norm_pre(tokens)

    def forward(self, images, added=None, queries=None):
        """images: (B, 3, H, W) -> (B, 1 + patches, D) after the last block.

        added:   (D,), added to every token before the first block
        queries: number of leading tokens that the last block computes (None: all)
        """
        x = self.embed(images) if added is None else self.embed(images) + added
        *blocks, last = self.blocks
        for block in blocks:
            x, _ = block(x)
        return last(x, queries)[0]

    def block_states(self, images, target="block"):
        """What every block gives, a list of (B, 1 + patches, D): its output, or with "ffn" its raw MLP output."""
        x, states = self.embed(images), []
        for block in self.blocks:
            x, inner = block(x)
            states.append(x if target == "block" else inner)
        return states


def sine_positions(side, width):
    """MAE's 2-D sin-cos table (arXiv:2111.06377) -> (1, side * side, D): half of the channels for the column."""
    steps = torch.arange(side, dtype=torch.float64)
    rows, columns = torch.meshgrid(steps, steps, indexing="ij")
    frequencies = 10000 ** -(torch.arange(width // 4, dtype=torch.float64) / (width / 4))
    angles = [axis.flatten()[:, None] * frequencies for axis in (columns, rows)]
    return torch.cat([wave for angle in angles for wave in (angle.sin(), angle.cos())], 1)[None].float()


def init_image_encoder(encoder):
    """Initial weights of an encoder that loads none: linear layers and class token N(0, 0.02), zero biases."""
    for part in encoder.modules():
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.02)
            nn.init.zeros_(part.bias)
    nn.init.normal_(encoder.cls_token, std=0.02)
