"""The loss of answering with soft scores."""

from torch.nn import functional as F


def soft_answer_loss(logits, scores, loss_scale=1, usable=None):
    """Binary cross entropy, mean over B * A, times `loss_scale`; a scale of 1 means times A (LXMERT's convention).

    logits: (B, A), scores: (B, A) in [0, 1], usable: bool (B,), rows that count (None: all) -> scalar, 0 if none does
    """
    loss = F.binary_cross_entropy_with_logits(logits.float(), scores, reduction="none").mean(1)  # (B,)
    loss = loss.mean() if usable is None else (loss * usable).sum() / usable.sum().clamp(min=1)
    return loss * (logits.shape[1] if loss_scale == 1 else loss_scale)
