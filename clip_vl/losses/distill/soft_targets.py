"""Cross entropy with a distribution over the classes as target, as mixup and CutMix make it."""

import torch
from torch.nn import functional as F

from clip_vl.losses.base import at_least_single


def soft_target_loss(logits, targets, mean_over_classes=False):
    """logits, targets: (B, C), rows of targets sum to 1 -> scalar, the mean over the batch of the sum over classes.

    mean_over_classes: the published form, which divides by C as well and so is C times smaller
    """
    terms = -targets * at_least_single(logits).log_softmax(1)
    return terms.mean() if mean_over_classes else terms.sum(1).mean()


def mix_images(images, labels, classes, generator, *, mixup=0.8, cutmix=1.0, prob=0.9, switch=0.5, smoothing=0.1):
    """Mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899) of a batch with itself in reverse order.

    images: float (B, 3, H, W), changed in place;  labels: int64 (B,)
    mixup, cutmix: parameter of the Beta distribution the share is drawn from; 0 turns one of them off
    prob:   probability that the batch is mixed;  switch: share of CutMix where both are on;  generator: NumPy's
    returns: (images, targets (B, C))
    """
    share = 1.0
    if generator.random() < prob and (mixup or cutmix):
        use_cutmix = generator.random() < switch if mixup and cutmix else bool(cutmix)
        share = float(generator.beta(*(2 * [cutmix if use_cutmix else mixup])))
        other = images.flip(0)
        if use_cutmix:
            top, bottom, left, right = cut_box(images.shape[-2:], share, generator)
            images[:, :, top:bottom, left:right] = other[:, :, top:bottom, left:right]
            share = 1 - (bottom - top) * (right - left) / (images.shape[-2] * images.shape[-1])
        else:
            images.mul_(share).add_(other.mul_(1 - share))
    targets = smooth_one_hot(labels, classes, smoothing)
    return images, targets * share + targets.flip(0) * (1 - share)


def cut_box(size, share, generator):
    """(top, bottom, left, right) of a box with 1 - share of the area around a random centre, cut at the borders."""
    edges = []
    for length in size:
        half = int(length * (1 - share) ** 0.5) // 2
        centre = int(generator.integers(0, length))
        edges += [max(0, centre - half), min(length, centre + half)]
    return edges


def smooth_one_hot(labels, classes, smoothing=0.0):
    """int64 (B,) -> (B, C): 1 - smoothing on the label, and smoothing / C on every class."""
    return F.one_hot(labels, classes).to(torch.float32) * (1 - smoothing) + smoothing / classes
