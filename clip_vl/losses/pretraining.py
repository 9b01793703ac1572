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


REGION_WEIGHT = 1 / 0.15  # of each region loss: as many as if every region, and not 15 %, were asked for


def region_losses(predictions, features, labels, confidences, masked, visible, count=None):
    """LXMERT's losses of what is at the regions (arXiv:1908.07490, section 3.1), as its program computes them.

    predictions: {"obj": (B, K, C), "attr": (B, K, C), "feat": (B, K, F)} or some of them
    features:    (B, K, F) before masking;  labels, confidences: {"obj", "attr": (B, K)} of the detector
    masked:      bool (B, K), the regions whose features were masked;  visible: bool (B, K), False for padding
    count:       by how many regions to divide [all that are visible]
    returns:     {"loss_obj", ...}: cross entropy times the detector's confidence, over all regions; smooth L1 of the
                 features over the masked ones; both divided by the number of all regions, times 1 / 0.15
    """
    count = (visible.sum() if count is None else count).clamp(min=1)
    losses = {}
    for name, predicted in predictions.items():
        if name == "feat":
            each = F.smooth_l1_loss(predicted.float(), features.float(), reduction="none").mean(-1) * masked
        else:
            each = F.cross_entropy(predicted.float().flatten(0, 1), labels[name].flatten(), reduction="none")
            each = each.view_as(visible) * confidences[name]
        losses[f"loss_{name}"] = (each * visible).sum() / count * REGION_WEIGHT
    return losses
