"""Transformer blocks of the distilled models: Data2Vec2's post-norm block and BEiT's pre-norm block."""

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.models.attention import attend

EPS = 1e-6  # of every LayerNorm here


class Attention(nn.Module):
    """Self-attention with one matrix for query, key and value.

    beit: the matrix has no bias; the query and the value have one each, the key none (arXiv:2106.08254)
    """

    def __init__(self, width, heads, beit=False):
        super().__init__()
        self.heads, self.beit = heads, beit
        self.qkv = nn.Linear(width, 3 * width, bias=not beit)
        self.proj = nn.Linear(width, width)
        if beit:
            self.q_bias = nn.Parameter(torch.zeros(width))
            self.v_bias = nn.Parameter(torch.zeros(width))

    def forward(self, x, bias=None, queries=None):
        """x: (B, L, D);  bias: see `attend`;  queries: number of leading tokens to compute (None: all)."""
        if queries is None:
            query, key, value = self._parts(x, 0, 3)  # (B, heads, L, d) each
        else:
            (query,), (key, value) = self._parts(x[:, :queries], 0, 1), self._parts(x, 1, 3)
        return self.proj(attend(query, key, value, bias).transpose(1, 2).flatten(2))

    def _parts(self, x, first, last):
        """Parts first..last of query, key and value -> (last - first, B, heads, L, d)."""
        D = x.shape[-1]
        rows = slice(first * D, last * D)
        all_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias]) if self.beit else self.qkv.bias
        projected = F.linear(x, self.qkv.weight[rows], all_bias[rows])
        return projected.unflatten(-1, (last - first, self.heads, -1)).permute(2, 0, 3, 1, 4)


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x):
        """x: (B, L, D) -> (output (B, L, D), output of the first layer before GELU (B, L, hidden))."""
        inner = self.fc1(x)
        return self.fc2(F.gelu(inner)), inner


class PostNormBlock(nn.Module):
    """Data2Vec2 (arXiv:2212.07525): b = norm1(x + attention(x)), then norm2(b + mlp(b))."""

    def __init__(self, width, heads, hidden):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads), Mlp(width, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)

    def forward(self, x, queries=None):
        """x: (B, L, D) -> (block output, MLP output before the residual), both (B, L or queries, D)."""
        x = self.norm1(x[:, :queries] + self.attn(x, queries=queries))
        added, _ = self.mlp(x)
        return self.norm2(x + added), added


class LayerScale(nn.Module):
    """One learned factor per channel."""

    def __init__(self, width, value):
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), value))

    def forward(self, x):
        return x * self.gamma


class PreNormBlock(nn.Module):
    """BEiT's block: x + scale1 * attention(norm1(x)), then x + scale2 * mlp(norm2(x)).

    layer_scale: initial value of both scales; None for a block without them
    """

    def __init__(self, width, heads, hidden, layer_scale):
        super().__init__()
        self.attn, self.mlp = Attention(width, heads, beit=True), Mlp(width, hidden)
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPS), nn.LayerNorm(width, eps=EPS)
        plain = layer_scale is None
        self.ls1 = nn.Identity() if plain else LayerScale(width, layer_scale)
        self.ls2 = nn.Identity() if plain else LayerScale(width, layer_scale)

    def forward(self, x, bias=None, queries=None):
        """x: (B, L, D) -> block output (B, L or queries, D) and the first MLP layer before GELU (..., hidden)."""
        x = x[:, :queries] + self.ls1(self.attn(self.norm1(x), bias, queries))
        added, inner = self.mlp(self.norm2(x))
        return x + self.ls2(added), inner
