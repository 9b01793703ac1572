"""Losses on both sides' scores of K prototypes: DINO and ProtoCPC."""

import torch
from torch.nn import functional as F

from clip_vl.engine import dist
from clip_vl.losses.base import AlignmentLoss

STUDENT_TEMPERATURE, MOMENTUM = 0.1, 0.9


class DINO(AlignmentLoss):
    """Cross entropy of the student's softmax with the teacher's, centred and sharpened (arXiv:2104.14294, section 3.1).

    center: buffer (K,), moving average of the teacher's mean score
    """

    uni_directional = needs_prototypes = True

    def __init__(self, n_prototypes, teacher_temperature=0.04):
        super().__init__()
        self.teacher_temperature = teacher_temperature
        self.register_buffer("center", torch.zeros(n_prototypes))

    def compute(self, student, teacher, **_):
        targets = ((teacher - self.center.to(teacher)) / self.teacher_temperature).softmax(1)
        loss = F.cross_entropy(student / STUDENT_TEMPERATURE, targets)
        if self.training:
            mean = summed(teacher.sum(0)) / (len(teacher) * dist.world_size())
            self.center.mul_(MOMENTUM).add_(mean.to(self.center), alpha=1 - MOMENTUM)
        return loss


class ProtoCPC(AlignmentLoss):
    """Contrast of prototypes under a running prior (Prototypical Contrastive Predictive Coding, ICLR 2022).

    -sum_k p_k z_k / 0.1 + logsumexp_k(z_k / 0.1 + log prior_k), p the teacher's softmax, or its Sinkhorn assignment
    prior: buffer (K,), moving average of K times the teacher's share of each prototype
    """

    uni_directional = needs_prototypes = True

    def __init__(self, n_prototypes, teacher_temperature=0.04, sinkhorn=False):
        super().__init__()
        self.teacher_temperature, self.sinkhorn = teacher_temperature, sinkhorn
        self.register_buffer("prior", torch.ones(n_prototypes))

    def compute(self, student, teacher, **_):
        scores = teacher / self.teacher_temperature
        targets = sinkhorn_assignment(scores) if self.sinkhorn else scores.softmax(1)
        logits = student / STUDENT_TEMPERATURE
        normaliser = (logits + self.prior.to(logits).log()).logsumexp(1)
        if self.training:
            share = summed(targets.sum(0))
            self.prior.mul_(MOMENTUM).add_((share / share.mean()).to(self.prior), alpha=1 - MOMENTUM)
        return (normaliser - (targets * logits).sum(1)).mean()


@torch.no_grad()
def sinkhorn_assignment(scores, iterations=3):
    """Scores of the whole batch, (B, K) here, as probabilities under which all K prototypes are used alike.

    Sums over prototypes are brought to 1 / K and sums over items to 1 / N in turn (SwAV, arXiv:2006.09882). Rows of
    the result sum to 1.
    """
    assignment = (scores - dist.gather_rows(scores.max()[None]).max()).exp()
    for _ in range(iterations):
        assignment = assignment / summed(assignment.sum(0)).clamp(min=torch.finfo(scores.dtype).tiny)
        assignment = assignment / assignment.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)
    return assignment


@torch.no_grad()
def summed(tensor):
    return dist.all_reduce(tensor)
