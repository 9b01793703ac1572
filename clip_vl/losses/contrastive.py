"""Contrastive losses over the whole batch: InfoNCE, UniCL, SigLIP; and CrossEntropy over classes."""

import math

from torch.nn import functional as F

from clip_vl.engine import dist
from clip_vl.losses.base import AlignmentLoss, at_least_single, full_precision, unit
from clip_vl.losses.tiled import PairwiseSigmoid, SymmetricCrossEntropy

SIMCSE_SCALE = math.exp(2.996)  # about 20: a fixed temperature of 0.05 (arXiv:2104.08821)


class InfoNCE(AlignmentLoss):
    """Mean of the two directions' cross entropies over the whole batch (CLIP, arXiv:2103.00020, figure 3)."""

    needs_scale = True

    def compute(self, student, teacher, logit_scale, **_):
        return symmetric_cross_entropy(student, teacher, logit_scale)


class UniCL(AlignmentLoss):
    """InfoNCE in which items that share a label are positives of each other too (arXiv:2204.03610, equation 2)."""

    needs_scale = needs_labels = True

    def compute(self, student, teacher, logit_scale, labels, **_):
        return symmetric_cross_entropy(student, teacher, logit_scale, labels)


def symmetric_cross_entropy(student, teacher, logit_scale, labels=None):
    """student, teacher: (B, D);  logit_scale: scalar;  labels: int64 (B,) or None -> scalar. See `tiled`."""
    student, teacher = unit(student), dist.all_gather(unit(teacher))
    labels = None if labels is None else dist.gather_rows(labels)
    return SymmetricCrossEntropy.apply(student, teacher, logit_scale.to(student.dtype), labels)


class SigLIP(AlignmentLoss):
    """A binary loss of every pair of the whole batch, matched or not (arXiv:2303.15343, algorithm 1)."""

    needs_scale = needs_bias = True

    def compute(self, student, teacher, logit_scale, logit_bias, **_):
        teacher = dist.all_gather(unit(teacher))
        scale, bias = logit_scale.to(student.dtype), logit_bias.to(student.dtype)
        return PairwiseSigmoid.apply(unit(student), teacher, scale, bias)


class CrossEntropy(AlignmentLoss):
    """Both towers classify: the heads' width is the number of classes; rows without a label do not count.

    The model's temperature, where it has one, scales both sides' scores.
    """

    needs_labels = True

    def compute(self, student, teacher, logit_scale, labels, **_):
        scale = 1 if logit_scale is None else logit_scale
        total = sum(
            F.cross_entropy(scale * side, labels, ignore_index=-1, reduction="sum") for side in (student, teacher)
        )
        labelled = dist.sum_over_ranks((labels != -1).sum()).clamp(min=1).to(total.device)
        return total / 2 * dist.world_size() / labelled


def simcse_loss(first, second):
    """InfoNCE between two dropout passes over the same sentences, (B, D) each, at a fixed scale (arXiv:2104.08821)."""
    with full_precision(first.device):
        first, second = at_least_single(first), at_least_single(second)
        return symmetric_cross_entropy(first, second, first.new_tensor(SIMCSE_SCALE))  # in bf16 it would be 20.0
