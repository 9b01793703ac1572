"""Dropout that is cheap on CPUs, where drawing Bernoulli numbers costs more than the layer before it."""

import torch
from torch import nn
from torch.nn import functional as F


def dropout(x, p):
    """Zero each element with probability p and scale the rest so that the expectation stays; p = 0 returns x.

    On CPUs each element is compared with one random byte: a third of the cost of `F.dropout`. This rounds p to
    1/256; the scale follows the rounded rate, so the expectation is exact. Draws from the default generator.
    """
    if p == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, p)
    keep = _kept_bytes(p)
    words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64).random_(-(2**63), None)  # 8 bytes by one draw
    random_bytes = words.view(torch.uint8)[: x.numel()].view(x.shape)
    return x * (random_bytes < keep).to(x.dtype).mul_(256 / keep)


def _kept_bytes(p):
    """How many of the 256 byte values keep an element."""
    return max(1, round((1 - p) * 256))


class Dropout(nn.Module):
    """`dropout` in training, identity in evaluation."""

    def __init__(self, p):
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"the dropout probability must lie in [0, 1), not {p}")
        self.p = p

    def forward(self, x):
        return dropout(x, self.p) if self.training else x

    def extra_repr(self):
        return f"p={self.p}"
