"""The one call form of the losses that align two towers."""

import contextlib

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine.errors import UserError


class AlignmentLoss(nn.Module):
    """loss(student, teacher, *, logit_scale, logit_bias, labels) -> scalar; subclasses write `compute`.

    student, teacher: (B, D), features of this process; row i of both describes the same thing
    logit_scale:      scalar, 1 / temperature;  logit_bias: scalar of SigLIP
    labels:           int64 (B,), class, or -1 for none
    returns:          scalar; its mean over the W processes is the loss of the whole W * B batch, and the gradient that
                      DistributedDataParallel averages is that of the whole batch

    Computed in fp32 (or the wider dtype of the features) also under autocast. State is in buffers that are the same
    on all processes; it moves in training mode only, after the scores were taken.
    """

    uni_directional = False  # no gradient reaches the teacher
    needs_prototypes = False  # student and teacher are scores of K prototypes, (B, K)
    needs_scale = needs_labels = needs_bias = False

    def forward(self, student, teacher, *, logit_scale=None, logit_bias=None, labels=None):
        self._check(logit_scale, logit_bias, labels)
        with full_precision(student.device):
            student, teacher = at_least_single(student), at_least_single(teacher)
            if self.uni_directional:
                teacher = teacher.detach()
            given = {"logit_scale": logit_scale, "logit_bias": logit_bias, "labels": labels}
            return self.compute(student, teacher, **given)

    def _check(self, logit_scale, logit_bias, labels):
        name = type(self).__name__
        if (self.needs_scale and logit_scale is None) or (self.needs_bias and logit_bias is None):
            raise UserError(f"{name} needs a model with logit_scale" + (" and logit_bias" if self.needs_bias else ""))
        if self.needs_labels and labels is None:
            raise UserError(f"{name} needs labels: train on classification sets, or name --csv_label_key")


@contextlib.contextmanager
def full_precision(device):
    """Products in the dtype of their factors: neither autocast nor TF32, whose 11 bits a scale of 100 magnifies."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def at_least_single(features):
    return features if features.dtype == torch.float64 else features.float()


def unit(features):
    """Rows divided by their L2 norm."""
    return F.normalize(features, dim=-1)
