"""The BEiTv2 teacher (arXiv:2208.06366): pre-norm blocks that share one table of relative positions."""

from dataclasses import dataclass

import torch
from torch import nn

from clip_vl.models.distill.blocks import EPS, PreNormBlock
from clip_vl.models.distill.image_encoder import ImageEncoderSpec, PatchEmbedding


@dataclass(frozen=True)
class BeitSpec(ImageEncoderSpec):
    """Sizes of a BEiTv2 encoder; the defaults are the published base model."""

    blocks: int = 12


class RelativePositions(nn.Module):
    """One bias per head and pair of tokens, from a table of (2 * side - 1)^2 + 3 rows."""

    def __init__(self, side, heads):
        super().__init__()
        rows = (2 * side - 1) ** 2 + 3
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        self.register_buffer("relative_position_index", relative_index(side))

    def forward(self):
        """(1, heads, 1 + side^2, 1 + side^2)."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)[None]


class Beit(nn.Module):
    """Images -> class tokens (B, D) of the last block.

    final_norm: the class token goes through the final LayerNorm; without it the encoder has none
    """

    def __init__(self, spec, final_norm=False):
        super().__init__()
        self.spec, D = spec, spec.width
        self.patch_embed, self.cls_token = PatchEmbedding(spec.patch, D), nn.Parameter(torch.zeros(1, 1, D))
        self.rel_pos_bias = RelativePositions(spec.side, spec.heads)
        self.blocks = nn.ModuleList(PreNormBlock(D, spec.heads, spec.hidden, 0.1) for _ in range(spec.blocks))
        self.norm = nn.LayerNorm(D, eps=EPS) if final_norm else nn.Identity()

    def forward(self, images):
        """images: (B, 3, H, W), normalised -> (B, D), not L2-normalised."""
        return self.norm(self.tokens(images, queries=1)[:, 0])

    def tokens(self, images, queries=None):
        """(B, 1 + patches, D) before the final norm; `queries`: the last block computes the first ones only."""
        patches = self.patch_embed(images)
        x = torch.cat([self.cls_token.to(patches.dtype).expand(len(images), 1, -1), patches], 1)
        bias = self.rel_pos_bias()
        *blocks, last = self.blocks
        for block in blocks:
            x, _ = block(x, bias)
        return last(x, bias[:, :, :queries], queries)[0]


def relative_index(side):
    """Row of the table for each query and key, (1 + side^2, 1 + side^2), the class token first.

    A pair of patches at distance (dy, dx), query minus key, has row (dy + side - 1) * (2 * side - 1) + dx + side - 1;
    the last three rows are class token to patch, patch to class token, and class token to itself.
    """
    cells = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    distance = cells[:, :, None] - cells[:, None, :] + side - 1  # (2, side^2, side^2), never negative
    last = (2 * side - 1) ** 2
    index = torch.empty(side**2 + 1, side**2 + 1, dtype=torch.int64)
    index[1:, 1:] = distance[0] * (2 * side - 1) + distance[1]
    index[0], index[:, 0], index[0, 0] = last, last + 1, last + 2
    return index
