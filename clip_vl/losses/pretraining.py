"""The three pre-training losses: one cross entropy each, over the rows that have a target."""

import torch
from torch.nn import functional as F


def masked_lm_loss(logits, targets, count=None):
    """Masked words. logits: (N, V), targets: (N,) token ids, -1 to ignore; `count` as in `mean_cross_entropy`."""
    return mean_cross_entropy(logits, targets, count)


def matched_loss(logits, targets, count=None):
    """Does the text belong to the image? logits: (B, 2), targets: (B,) 1 matched, 0 not, -1 to ignore."""
    return mean_cross_entropy(logits, targets, count)


def answer_loss(logits, targets, count=None):
    """One sampled answer per question. logits: (N, A), targets: (N,) class ids, -1 to ignore."""
    return mean_cross_entropy(logits, targets, count)


def mean_cross_entropy(logits, targets, count=None):
    """Sum of the cross entropies of all rows with a target, divided by `count`; no target means 0 and not NaN.

    logits:  (N, C)
    targets: (N,), class or -1 to ignore
    count:   by how many to divide; None: the rows with a target. With W processes, pass the count of all of them
             divided by W, and the mean of the processes' losses is that of the whole batch.
    """
    total = F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="sum")
    count = (targets >= 0).sum() if count is None else torch.as_tensor(count, device=logits.device)
    return total / count.where(count > 0, torch.ones_like(count))
