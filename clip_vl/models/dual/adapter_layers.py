"""What adapters are made of: bottlenecks, Kronecker products, prefixes, gates, and the layers of BERT around them."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.models.attention import attend

DROPPED = -10000.0  # added to the attention scores of keys that must not be seen


class Bottleneck(nn.Module):
    """scale * up(activation(down(x))), through a gate where there is one."""

    def __init__(self, down, activation, up, scale=1.0, gate=None):
        super().__init__()
        self.down, self.activation, self.up, self.scale, self.gate = down, activation, up, scale, gate

    @classmethod
    def over(cls, width, reduction, scale=1.0, gate=None, zero_up=False):
        """Linear layers and a ReLU over `width`; the adapter begins as almost nothing, with zero_up as nothing."""
        inner = max(1, width // reduction)
        down, up = nn.Linear(width, inner), nn.Linear(inner, width)
        for layer in (down, up):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        if zero_up:
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))
            nn.init.zeros_(up.weight)
        return cls(down, nn.ReLU(), up, scale, gate)

    def forward(self, x):
        """x: (B, L, D) -> (B, L, D), what is added to a sublayer."""
        y = self.up(self.activation(self.down(x))) * self.scale
        return y if self.gate is None else y * self.gate(x)


class PhmRule(nn.Module):
    """The n matrices (n, n) of a parametrised hypercomplex multiplication (arXiv:2102.08597), shared by many layers."""

    def __init__(self, n):
        super().__init__()
        self.rule = nn.Parameter(torch.randn(n, n, n) * 1e-4)


class PhmLinear(nn.Module):
    """A linear layer whose matrix is the sum over i of rule_i (x) left_i right_i, of rank 1 each."""

    def __init__(self, in_features, out_features, rule):
        super().__init__()
        n = len(rule.rule)
        self.shared = (rule,)  # a tuple: the rule is the model's, not this layer's
        self.left = nn.Parameter(torch.empty(n, in_features // n, 1))
        self.right = nn.Parameter(torch.empty(n, 1, out_features // n))
        self.bias = nn.Parameter(torch.zeros(out_features))
        for matrix in (*self.left, *self.right):
            nn.init.xavier_normal_(matrix.data)

    def forward(self, x):
        """x: (..., in_features) -> (..., out_features)."""
        matrix = torch.einsum("iab,ipq->apbq", self.shared[0].rule, self.left @ self.right)
        return x @ matrix.flatten(2).flatten(0, 1).to(x.dtype) + self.bias


class Nice(nn.Module):
    """An additive coupling (arXiv:1410.8516): each half of a vector is shifted by a function of the other."""

    def __init__(self, width, reduction):
        super().__init__()
        first, second = width // 2, width - width // 2
        self.F, self.G = self._shift(second, first, reduction), self._shift(first, second, reduction)
        self.split = (first, second)

    @staticmethod
    def _shift(in_features, out_features, reduction):
        layers = nn.Linear(in_features, in_features // reduction), nn.Linear(in_features // reduction, out_features)
        for layer in layers:
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
        return nn.Sequential(layers[0], nn.ReLU(), layers[1])

    def forward(self, x):
        """x: (..., D) -> (..., D)."""
        first, second = x.split(self.split, dim=-1)
        first = first + self.F(second)
        return torch.cat([first, second + self.G(first)], dim=-1)


class KeptTokens:
    """Where the gates find which tokens of the batch at hand are not padding: mask (B, L), or None for all."""

    mask = None


class Gate(nn.Module):
    """sigmoid(linear(x)), averaged over the text: one number per text, between 0 and 1."""

    def __init__(self, width, kept):
        super().__init__()
        self.linear, self.kept = nn.Linear(width, 1), kept
        nn.init.normal_(self.linear.weight, std=0.02)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x):
        """x: (B, L, D) -> (B, 1, 1)."""
        opened = torch.sigmoid(self.linear(x))
        if self.kept.mask is None:
            return opened.mean(dim=1, keepdim=True)
        keep = self.kept.mask.unsqueeze(-1).to(opened.dtype)
        return (opened * keep).sum(1, keepdim=True) / keep.sum(1, keepdim=True)


class LowRank(nn.Module):
    """LoRA's update of a linear layer, x Aᵀ Bᵀ, with a gate instead of alpha / r; starts at zero."""

    def __init__(self, width, rank, gate):
        super().__init__()
        self.A, self.B = nn.Parameter(torch.empty(rank, width)), nn.Parameter(torch.zeros(width, rank))
        self.gate = gate
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))

    def forward(self, x):
        """x: (B, L, D) -> (B, L, D)."""
        return F.linear(F.linear(x, self.A), self.B) * self.gate(x)


class Prefix(nn.Module):
    """Keys and values of every layer for `length` positions before the text, from a network of two layers."""

    def __init__(self, length, width, bottleneck, layers, heads):
        super().__init__()
        self.heads, self.layers = heads, layers
        self.tokens = nn.Parameter(torch.randn(length, width))
        self.down, self.up = nn.Linear(width, bottleneck), nn.Linear(bottleneck, layers * 2 * width)

    def forward(self, layer):
        """Keys and values of one layer: (2, heads, length, d)."""
        rows = slice(layer * 2 * self.tokens.shape[1], (layer + 1) * 2 * self.tokens.shape[1])
        hidden = torch.tanh(self.down(self.tokens))
        states = F.linear(hidden, self.up.weight[rows], self.up.bias[rows])  # (length, 2 D)
        return states.unflatten(-1, (2, self.heads, -1)).permute(1, 2, 0, 3)


class AdaptedSelfAttention(nn.Module):
    """BERT's self-attention, under its names, with a prefix before keys and values and, where set, low-rank updates."""

    def __init__(self, base, prefix, layer, gate=None):
        super().__init__()
        self.query, self.key, self.value = base.query, base.key, base.value
        self.heads, self.dropout = base.num_attention_heads, base.dropout.p
        self.shared, self.layer = (prefix,), layer  # a tuple: the prefix is the model's, not this layer's
        self.prefix_gate = gate
        self.lora_query = self.lora_value = None

    def forward(self, hidden_states, attention_mask=None, **_):
        """hidden_states: (B, L, D), attention_mask: (B, 1, L, L) or None -> ((B, L, D), None)."""
        x = hidden_states
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.lora_query is not None:
            query, value = query + self.lora_query(x), value + self.lora_value(x)
        query, key, value = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (query, key, value))
        prefix = self.shared[0](self.layer).unsqueeze(1).expand(-1, len(x), -1, -1, -1)  # (2, B, heads, length, d)
        if self.prefix_gate is not None:
            prefix = prefix * self.prefix_gate(x).unsqueeze(-1)
        key, value = (torch.cat([before.to(own.dtype), own], dim=2) for before, own in zip(prefix, (key, value)))
        bias = _bias(attention_mask, prefix.shape[3])
        context = attend(query, key, value, bias, self.dropout if self.training else 0.0)
        return context.transpose(1, 2).flatten(2), None


def _bias(mask, length):
    """A mask for the text's keys, with the `length` positions before them always attended to."""
    if mask is None:
        return None
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, DROPPED)
    return F.pad(mask, (length, 0))


class AdaptedOutput(nn.Module):
    """How a sublayer of BERT ends, under its names, with an adapter: LayerNorm(y + x + adapter(...)).

    y is the sublayer's output after dropout, x its input (the residual).
    reads: what the adapter sees: "sublayer" y, "residual" x, "normed" LayerNorm(y + x)
    """

    def __init__(self, base, adapter, reads):
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = base.dense, base.dropout, base.LayerNorm
        self.adapter, self.reads = adapter, reads

    def forward(self, hidden_states, input_tensor):
        """hidden_states: what the sublayer's last linear layer reads; input_tensor: x (B, L, D) -> (B, L, D)."""
        y = self.dropout(self.dense(hidden_states))
        total = y + input_tensor
        if self.reads == "normed":
            seen = self.LayerNorm(total)
        else:
            seen = y if self.reads == "sublayer" else input_tensor
        return self.LayerNorm(total + self.adapter(seen))
