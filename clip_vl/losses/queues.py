"""Losses that compare scores against a queue of earlier features: CompRess and SEED."""

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.random import torch_generator
from clip_vl.losses.base import AlignmentLoss, unit


class FeatureQueue(nn.Module):
    """The last K features of all processes: buffers `features` (K, D) and `place`, where the next one goes."""

    def __init__(self, features):
        super().__init__()
        self.register_buffer("features", features)
        self.register_buffer("place", torch.zeros((), dtype=torch.int64))

    def snapshot(self):
        """The features as they are now: the backward pass wants them after the queue has moved on."""
        return self.features.clone()

    @torch.no_grad()
    def add(self, features):
        """Put in every process's rows, (B, D) each, over the oldest; any W * B goes, of more than K the last stay."""
        rows = dist.gather_rows(features).to(self.features)
        K, N = len(self.features), len(rows)
        places = (self.place + torch.arange(max(0, N - K), N, device=rows.device)) % K
        self.features[places] = rows[-K:]
        self.place.copy_((self.place + N) % K)


class CompRess1q(AlignmentLoss):
    """KL from the teacher's softmax over its queue to the student's over the same one (arXiv:2010.14713, 1q).

    T: 0.04;  queue_size: K
    """

    uni_directional = True
    TEMPERATURE = 0.04

    def __init__(self, dim, queue_size=65536, seed=0):
        super().__init__()
        self.teacher_queue = FeatureQueue(uniform_features(dim, queue_size, seed, "teacher"))

    def compute(self, student, teacher, **_):
        student, teacher = unit(student), unit(teacher)
        loss = self.divergence(student, teacher, *self.banks())
        if self.training:
            self.add(student, teacher)
        return loss

    def divergence(self, student, teacher, student_bank, teacher_bank):
        targets = (teacher @ teacher_bank.T / self.TEMPERATURE).log_softmax(1)  # (B, K)
        predicted = (student @ student_bank.T / self.TEMPERATURE).log_softmax(1)
        return F.kl_div(predicted, targets, reduction="batchmean", log_target=True)

    def banks(self):
        """What the student and the teacher are compared with, each (K, D)."""
        features = self.teacher_queue.snapshot()
        return features, features

    def add(self, student, teacher):
        self.teacher_queue.add(teacher)


class CompRess2q(CompRess1q):
    """The same with a queue of the student's own features for the student (arXiv:2010.14713, 2q)."""

    uni_directional = False

    def __init__(self, dim, queue_size=65536, seed=0):
        super().__init__(dim, queue_size, seed)
        self.student_queue = FeatureQueue(uniform_features(dim, queue_size, seed, "student"))

    def banks(self):
        return self.student_queue.snapshot(), self.teacher_queue.snapshot()

    def add(self, student, teacher):
        super().add(student, teacher)
        self.student_queue.add(student)


class SEED(AlignmentLoss):
    """The teacher's softmax (T 1e-4) over [its own feature, queue] is the target of the student's (T 0.07) over the
    same (arXiv:2101.04731, equation 3)."""

    uni_directional = True
    TEACHER_TEMPERATURE, STUDENT_TEMPERATURE = 1e-4, 0.07

    def __init__(self, dim, queue_size=65536, seed=0):
        super().__init__()
        features = torch.randn(at_least_one(queue_size), dim, generator=torch_generator(seed, "queue"))
        self.queue = FeatureQueue(unit(features))

    def compute(self, student, teacher, **_):
        student, teacher, queue = unit(student), unit(teacher), self.queue.snapshot()
        targets = (self.scores(teacher, teacher, queue) / self.TEACHER_TEMPERATURE).softmax(1)
        loss = F.cross_entropy(self.scores(student, teacher, queue) / self.STUDENT_TEMPERATURE, targets)
        if self.training:
            self.queue.add(teacher)
        return loss

    @staticmethod
    def scores(features, teacher, queue):
        """(B, 1 + K): with the teacher's own feature of the row, then with the queue."""
        return torch.cat([(features * teacher).sum(1, keepdim=True), features @ queue.T], 1)


def uniform_features(dim, length, seed, purpose):
    """(K, D), uniform within +-1 / sqrt(D / 3): the length of a row is about 1."""
    drawn = torch.rand(at_least_one(length), dim, generator=torch_generator(seed, f"queue of the {purpose}"))
    return (2 * drawn - 1) / (dim / 3) ** 0.5


def at_least_one(queue_size):
    if queue_size < 1:
        raise UserError(f"--queue_size is {queue_size}; a queue holds at least 1 feature")
    return queue_size
