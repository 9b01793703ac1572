"""Multi-head attention: the one rule that picks the fastest exact form."""

import torch
from torch.nn import functional as F
from torch.overrides import has_torch_function_variadic

from clip_vl.models.dropout import dropout as drop

# Up to this many keys the plain product beats the fused kernel on CPUs (forward and backward, 12 heads of width 64).
PLAIN_TOKENS = {torch.bfloat16: 500, torch.float16: 500, torch.float32: 200}


def attend(query, key, value, bias=None, dropout=0.0):
    """softmax(query keyᵀ / sqrt(d) + bias) value.

    query, key, value: (B, heads, L, d)
    bias:    added to the scores, broadcastable to (B, heads, L, L): 0 keeps, -10000 drops a key; None keeps all
    dropout: probability of dropping an attention weight; 0 outside training
    returns: (B, heads, L, d)
    """
    if bias is not None:
        bias = bias.to(query.dtype)
    if _plain_is_faster(query, key, dropout) and not has_torch_function_variadic(query, key):
        return plain_attention(query, key, value, bias, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)


def _plain_is_faster(query, key, dropout):
    if query.device.type != "cpu":
        return False
    # The fused CPU kernel knows no dropout: asked for it, PyTorch takes a slower plain form of its own.
    return dropout > 0 or key.shape[-2] < PLAIN_TOKENS.get(query.dtype, 0)


def plain_attention(query, key, value, bias, dropout):
    """`attend` as a product, a softmax and a product."""
    return drop(attention_probabilities(query, key, bias), dropout) @ value


def attention_probabilities(query, key, bias=None):
    """softmax(query keyᵀ / sqrt(d) + bias), (B, heads, L, M)."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, L, L)
    if bias is not None:
        scores += bias
    return scores.softmax(dim=-1)


class PackedProjection:
    """Query, key and value of an attention from one matrix, under the names of `nn.MultiheadAttention`."""

    def project(self, x, first, last):
        """Parts first..last of query, key and value (0, 1, 2) of x: (..., D) -> (..., (last - first) * D)."""
        rows = slice(first * x.shape[-1], last * x.shape[-1])
        return F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
