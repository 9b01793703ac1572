"""Image-text contrast that leaves out false negatives: other texts and images of the same image."""

import torch
from torch.nn import functional as F

from clip_vl.engine import dist
from clip_vl.losses.base import at_least_single, full_precision, unit


def image_text_contrast(images, texts, scale, image_ids=None):
    """CLIP's symmetric cross entropy over the whole batch (arXiv:2103.00020) -> (loss, accuracies).

    images, texts: (B, D), row i of both is a pair;  scale: 1 / temperature
    image_ids:     int64 (B,), -1 for none: pairs of one image are no negatives of each other; None: all are negatives
    returns:       loss, whose mean over the processes is that of the whole batch, and {"image_acc", "text_acc",
                   "acc"}: how often an image finds its text, a text its image, and the mean
    """
    with full_precision(images.device):
        images, texts = unit(at_least_single(images)), unit(at_least_single(texts))
        B = len(images)
        labels = dist.rank() * B + torch.arange(B, device=images.device)  # my pairs in the gathered batch
        by_image = scale * images @ dist.all_gather(texts).T  # (B, W * B)
        by_text = scale * texts @ dist.all_gather(images).T
        if image_ids is not None:
            hidden = same_image(image_ids.to(images.device), labels)
            by_image, by_text = (logits.masked_fill(hidden, -torch.inf) for logits in (by_image, by_text))
        losses = [F.cross_entropy(logits, labels) for logits in (by_image, by_text)]
        right = [(logits.detach().argmax(1) == labels).float().mean() for logits in (by_image, by_text)]
    accuracies = {"image_acc": right[0], "text_acc": right[1], "acc": sum(right) / 2}
    return sum(losses) / 2, accuracies


def same_image(image_ids, own):
    """(B, W * B): columns of the gathered batch that show a row's image and are not its own column."""
    columns = dist.gather_rows(image_ids)
    same = (image_ids[:, None] == columns) & (columns != -1)
    same[torch.arange(len(own), device=own.device), own] = False
    return same
