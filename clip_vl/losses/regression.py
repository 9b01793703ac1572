"""Losses that regress the teacher's features: SimReg and its kin, and BYOL's term."""

from torch.nn import functional as F

from clip_vl.losses.base import AlignmentLoss, unit


class SimReg(AlignmentLoss):
    """Squared distance of unit vectors, 2 - 2 cos (arXiv:2201.05131).

    variant: "paper" sums over the D dimensions, "original" is the mean over them
    """

    def __init__(self, variant="paper"):
        super().__init__()
        self.by_dimension = variant == "original"

    def compute(self, student, teacher, **_):
        loss = F.mse_loss(unit(student), unit(teacher))
        return loss if self.by_dimension else loss * student.shape[1]


class SimRegL1(AlignmentLoss):
    """Mean absolute difference of unit vectors."""

    def compute(self, student, teacher, **_):
        return F.l1_loss(unit(student), unit(teacher))


class SimRegSmoothL1(AlignmentLoss):
    """Mean Huber distance (beta 1) of unit vectors."""

    def compute(self, student, teacher, **_):
        return F.smooth_l1_loss(unit(student), unit(teacher))


def byol_loss(augmented, view):
    """Mean squared difference of the projected augmented view from the projected view, which gets no gradient."""
    return F.mse_loss(augmented.float(), view.detach().float())
