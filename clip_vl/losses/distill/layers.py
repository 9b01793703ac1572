"""Distillation of a deep encoder into a shallow one by the mean of their layers (Data2Vec, arXiv:2202.03555)."""

import torch
from torch.nn import functional as F

from clip_vl.losses.base import at_least_single, full_precision

EPS = 1e-5


def layer_average(states, final_norm=True):
    """Mean over layers of each layer's states, normalised over tokens per channel; then LayerNorm over channels.

    states:     list of (B, L, D)
    final_norm: published for images; texts go without
    returns:    (B, L, D), fp32
    """
    with full_precision(states[0].device):
        total = 0
        for state in states:
            total = total + F.instance_norm(at_least_single(state).transpose(1, 2), eps=EPS).transpose(1, 2)
        mean = total / len(states)
        return F.layer_norm(mean, mean.shape[-1:], eps=EPS) if final_norm else mean


def layer_distillation(student_states, teacher_states, mask=None, final_norm=True):
    """Mean squared difference of the two averages over the tokens that count -> scalar.

    mask: (B, L), 1 for tokens that count; None for all
    """
    with torch.no_grad():
        target = layer_average(teacher_states, final_norm)
    predicted = layer_average(student_states, final_norm)
    if mask is None:
        return F.mse_loss(predicted, target)
    return F.mse_loss(predicted[mask.bool()], target[mask.bool()])
