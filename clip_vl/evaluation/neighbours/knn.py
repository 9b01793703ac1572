"""Weighted k-nearest-neighbour classification of features (Wu et al., arXiv:1805.01978, section 3.4; DINO)."""

import torch
from torch.nn import functional as F

from clip_vl.evaluation.neighbours.exact import sharded_top_k


def knn_scores(train, labels, test, num_classes, k=20, temperature=0.07):
    """Share of the votes of each class, (N, C) on the host: the k nearest by cosine vote exp(cosine / temperature).

    train (M, D), test (N, D): float32 on one device, of any length; labels: int64 (M,). The test features, however
    many, are divided between the processes; each searches in blocks. Of equal cosines the lower training row is nearer.
    """
    train, test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    found = sharded_top_k(test, train, k)
    votes = torch.exp(
        (found.scores - found.scores[:, :1]) / temperature
    )  # without the largest, which cancels, no overflow
    counts = torch.zeros(len(test), num_classes).scatter_add_(1, labels.cpu()[found.rows], votes)
    return counts / counts.sum(1, keepdim=True)
