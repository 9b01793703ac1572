"""Losses of answering: with soft scores, and with one right answer."""

from torch.nn import functional as F


def soft_answer_loss(logits, scores, loss_scale=1, usable=None):
    """Binary cross entropy, mean over B * A, times `loss_scale`; a scale of 1 means times A (LXMERT's convention).

    logits: (B, A), scores: (B, A) in [0, 1], usable: bool (B,), rows that count (None: all) -> scalar, 0 if none does
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), scores, reduction="none").mean(1)  # (B,)
    loss = loss.mean() if usable is None else (loss * usable).sum() / usable.sum().clamp(min=1)
    return loss * (logits.shape[1] if loss_scale == 1 else loss_scale)


def single_answer_loss(logits, targets, usable=None):
    """Cross entropy over the answers, mean over the rows that count; 0 if none does.

    logits: (B, A), targets: (B,) classes, -1 to ignore, usable: bool (B,) or None: all -> scalar
    """
    if usable is not None:
        targets = targets.masked_fill(~usable, -1)
    total = F.cross_entropy(logits.float(), targets, ignore_index=-1, reduction="sum")
    return total / (targets >= 0).sum().clamp(min=1)
