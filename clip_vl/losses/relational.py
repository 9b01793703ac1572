"""Relational knowledge distillation: distances and angles among the items of the batch (RKD, arXiv:1904.05068)."""

import torch
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clip_vl.engine import dist
from clip_vl.losses.base import AlignmentLoss, unit

MAX_COSINES = 2**22  # at a time: 32 MiB in fp64
LEAST_SQUARE = 1e-12  # a squared distance between two items is at least this, in the published code


class RKD(AlignmentLoss):
    """Huber losses of distances over their mean (equation 7) and of the cosines of all angles (equation 10).

    Both are of unit vectors and come out of their N x N squared distances alone: the law of cosines gives the angle at
    a between b and c. This process takes the rows and vertices that are its own, a few vertices at a time, recomputed
    in the backward pass.
    """

    def __init__(self, distance_weight=0.5, angle_weight=1.0):
        super().__init__()
        self.distance_weight, self.angle_weight = distance_weight, angle_weight

    def compute(self, student, teacher, **_):
        B = student.shape[0]
        mine = torch.arange(B, device=student.device) + dist.rank() * B
        squares = [squared_distances(dist.all_gather(unit(side))) for side in (student, teacher)]
        return self.distance_weight * distance_loss(*squares, mine) + self.angle_weight * angle_loss(*squares, mine)


def squared_distances(features):
    """(N, D) -> fp64 (N, N): subtraction of near numbers follows, and the product is small beside the angles."""
    features = features.double()
    products = features @ features.T
    norms = products.diagonal()
    squares = (norms[:, None] + norms - 2 * products).clamp(min=0)
    return squares.where(squares > LEAST_SQUARE * norms.detach().mean(), 0)  # the same point up to rounding


def distance_loss(student, teacher, rows):
    """Huber loss of d / mean(d > 0), mean over my rows and all columns. student, teacher: squared distances (N, N).

    Two items of one feature count with d = 1e-6, as in the code of both papers; an item's distance to itself is 0.
    """
    N = len(student)
    themselves = torch.eye(N, dtype=torch.bool, device=student.device)
    relative = []
    for squares in (student, teacher):
        distances = safe_sqrt(squares.clamp(min=LEAST_SQUARE).masked_fill(themselves, 0))
        mean = distances.sum() / max(1, N * (N - 1))
        relative.append((distances / mean.clamp(min=LEAST_SQUARE**0.5))[rows].float())
    return F.smooth_l1_loss(*relative)


def angle_loss(student, teacher, vertices):
    """Huber loss of the cosines of all angles at my vertices. student, teacher: squared distances (N, N)."""
    N = len(student)
    parts = vertices.split(max(1, MAX_COSINES // N**2))
    total = sum(checkpoint(sum_of_angles, student, teacher, part, use_reentrant=False) for part in parts)
    return (total / (len(vertices) * N**2)).float()


def sum_of_angles(student, teacher, vertices):
    return F.smooth_l1_loss(cosines_at(student, vertices), cosines_at(teacher, vertices), reduction="sum").double()


def cosines_at(squares, vertices):
    """Cosine of the angle b-a-c for vertices a (V,), squares (N, N) -> fp32 (V, N, N); 0 where b or c is a itself."""
    legs = squares[vertices]  # (V, N)
    inverse = safe_sqrt(legs)
    inverse = torch.where(inverse > 0, 1 / inverse.where(inverse > 0, 1), 0)
    cosines = (legs[:, :, None] + legs[:, None, :] - squares) / 2
    return (cosines * inverse[:, :, None] * inverse[:, None, :]).float()


def safe_sqrt(values):
    """Square root with a gradient of 0 at 0."""
    return torch.where(values > 0, values.where(values > 0, 1).sqrt(), 0)
