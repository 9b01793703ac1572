"""Multi-head attention: the one rule that picks the fastest exact form."""

from contextlib import contextmanager

import torch
from torch.nn import functional as F

from clip_vl.models.dropout import dropout as drop

# Up to this many keys the plain product beats the fused kernel on CPUs (forward and backward, 12 heads of width 64).
PLAIN_TOKENS = {torch.bfloat16: 500, torch.float16: 500, torch.float32: 200}
_seen = None  # inside `attention_written_out`: the list that the probabilities go to


def attend(query, key, value, bias=None, dropout=0.0):
    """softmax(query keyᵀ / sqrt(d) + bias) value.

    query, key, value: (B, heads, L, d)
    bias:    added to the scores, broadcastable to (B, heads, L, L): 0 keeps, -10000 drops a key; None keeps all
    dropout: probability of dropping an attention weight; 0 outside training
    returns: (B, heads, L, d)
    """
    if bias is not None:
        bias = bias.to(query.dtype)
    if _plain_is_faster(query, key, dropout):
        return _plain(query, key, value, bias, dropout)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout)


def _plain_is_faster(query, key, dropout):
    if query.device.type != "cpu":
        return False
    # The fused CPU kernel knows no dropout: asked for it, PyTorch takes a slower plain form of its own.
    return dropout > 0 or key.shape[-2] < PLAIN_TOKENS.get(query.dtype, 0)


def _plain(query, key, value, bias, dropout):
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)  # (B, heads, L, L)
    if bias is not None:
        scores += bias
    probabilities = scores.softmax(dim=-1)
    if _seen is not None:
        _seen.append(probabilities)
    return drop(probabilities, dropout) @ value


@contextmanager
def attention_written_out():
    """Inside, attention is the plain product and leaves its probabilities (B, heads, L, M) in the list that is given.

    So is that of `nn.MultiheadAttention` and of libraries that call F.scaled_dot_product_attention, whose kernels keep
    no probabilities. Calls that are causal, masked by truth values or scaled otherwise run as ever and leave nothing.
    """
    global _seen
    fused, _seen = F.scaled_dot_product_attention, []

    def plain(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **more):
        if is_causal or scale is not None or more or (attn_mask is not None and attn_mask.dtype == torch.bool):
            return fused(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        return _plain(query, key, value, attn_mask, dropout_p)

    F.scaled_dot_product_attention = plain
    try:
        yield _seen
    finally:
        F.scaled_dot_product_attention, _seen = fused, None


class PackedProjection:
    """Query, key and value of an attention from one matrix, under the names of `nn.MultiheadAttention`."""

    def project(self, x, first, last):
        """Parts first..last of query, key and value (0, 1, 2) of x: (..., D) -> (..., (last - first) * D)."""
        rows = slice(first * x.shape[-1], last * x.shape[-1])
        return F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
