"""InfoNCE with hard negative images as pairs and hard negative texts as columns (NegCLIP, arXiv:2210.01936)."""

import torch
from torch.nn import functional as F

from clip_vl.engine import dist
from clip_vl.losses.base import at_least_single, full_precision, unit


def hard_negative_loss(image_features, text_features, logit_scale, image_ids=None):
    """1/2 [CE(image -> all texts) + CE(positive text -> all images)]; negative texts are no queries.

    image_features: (2B, D): this process's images, then their hard negative images
    text_features:  (4B, D): the texts of those 2B images, then 2B negative texts
    logit_scale:    scalar;  image_ids: int64 (2B,), equal for one image that stands in the batch twice, whose other
                    text is then neither positive nor negative; None: all differ
    returns:        scalar; its mean over the processes is the loss of the whole batch
    """
    with full_precision(image_features.device):
        images, texts = unit(at_least_single(image_features)), unit(at_least_single(text_features))
        M = len(images)  # 2B
        positives, negatives = texts[:M], texts[M:]
        columns = torch.cat([dist.all_gather(positives), dist.all_gather(negatives)])  # (2 * W * 2B, D)
        image_logits = logit_scale * images @ columns.T
        text_logits = logit_scale * positives @ dist.all_gather(images).T
        targets = torch.arange(M, device=images.device) + dist.rank() * M
        if image_ids is not None:
            same = same_image(image_ids, targets)
            text_logits = text_logits.masked_fill(same, -torch.inf)
            image_logits = image_logits.masked_fill(F.pad(same, (0, len(columns) - same.shape[1])), -torch.inf)
        return (F.cross_entropy(image_logits, targets) + F.cross_entropy(text_logits, targets)) / 2


def same_image(image_ids, targets):
    """bool (2B, W * 2B): the column is another row of the same image."""
    same = image_ids[:, None] == dist.gather_rows(image_ids)
    same[torch.arange(len(targets), device=same.device), targets] = False
    return same
