"""Losses on the covariance of features over the whole batch: VICReg and Barlow Twins."""

import torch
from torch.nn import functional as F

from clip_vl.engine import dist
from clip_vl.losses.base import AlignmentLoss, unit


class VICReg(AlignmentLoss):
    """25 * invariance + 25 * variance + 1 * covariance (arXiv:2105.04906, equation 6).

    variant: "paper" takes the features as they are, "original" normalises their rows first, under which the variance
             of a dimension cannot reach the 1 of its hinge
    """

    def __init__(self, variant="paper"):
        super().__init__()
        self.normalises = variant == "original"

    def compute(self, student, teacher, **_):
        if self.normalises:
            student, teacher = unit(student), unit(teacher)
        loss = 25 * F.mse_loss(student, teacher)
        for features in (student, teacher):
            covariance = batch_covariance(features)  # (D, D)
            spread = (covariance.diagonal() + 1e-4).sqrt()
            loss = loss + 25 * F.relu(1 - spread).mean() / 2 + off_diagonal_squares(covariance) / features.shape[1]
        return loss


class BarlowTwins(AlignmentLoss):
    """The cross-correlation of both sides shall be the identity (arXiv:2103.03230, equation 1).

    variant: "paper" standardises columns over the whole batch; "original" divides rows and then columns by their L2
             norms, so that the diagonal can reach 1 / N only
    """

    WEIGHT = 0.0051

    def __init__(self, variant="paper"):
        super().__init__()
        self.columns = unit_columns if variant == "original" else standardised_columns

    def compute(self, student, teacher, **_):
        N = student.shape[0] * dist.world_size()
        correlation = dist.all_reduce(self.columns(student).T @ self.columns(teacher)) / N  # (D, D)
        on_diagonal = (correlation.diagonal() - 1).square().sum()
        return on_diagonal + self.WEIGHT * off_diagonal_squares(correlation)


def batch_covariance(features):
    """Unbiased covariance over the whole batch: (B, D) -> (D, D)."""
    N = features.shape[0] * dist.world_size()
    centred = features - dist.all_reduce(features.sum(0)) / N
    return dist.all_reduce(centred.T @ centred) / max(1, N - 1)


def standardised_columns(features):
    """Zero mean and unit (biased) variance of each column over the whole batch."""
    N = features.shape[0] * dist.world_size()
    centred = features - dist.all_reduce(features.sum(0)) / N
    variance = dist.all_reduce(centred.square().sum(0)) / N
    return centred * variance.clamp(min=1e-12).rsqrt()  # a column without variance stays 0


def unit_columns(features):
    features = unit(features)
    return features * dist.all_reduce(features.square().sum(0)).clamp(min=1e-24).rsqrt()


def off_diagonal_squares(matrix):
    return (matrix - torch.diag(matrix.diagonal())).square().sum()
