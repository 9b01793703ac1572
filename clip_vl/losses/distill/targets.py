"""Losses that teach an image and a text encoder one frozen image teacher's class token: S-SMKE, SHRe and variants.

Each takes what both encoders say of the same B images and returns a dict of scalars: `kd_loss` is the mean of
`kd_image_loss` and `kd_text_loss`, and the contrastive ones add how often the right target scored highest (`*_acc`).
"""

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.random import torch_generator
from clip_vl.losses.base import at_least_single, full_precision, unit
from clip_vl.losses.queues import FeatureQueue

EMPTY, UNKNOWN = -2, -1  # image ids of a bank slot that holds nothing, and of a target whose image has no id


class BankDistillation(nn.Module):
    """Each image and text must find its teacher target among the batch's targets and a bank of earlier ones.

    The bank is a FIFO queue of `size` L2-normalised targets, the same on all processes. `remember` writes the batch's
    targets over the oldest: call it after the backward pass, which reads the bank.

    width:      width of the targets
    dtype:      of the bank and of the products with it
    init:       "empty" (unfilled slots are masked) or "random" (the published noise, normalised uniform numbers)
    candidates: "global" takes the targets of all processes, so that the loss does not depend on their number; "local"
                those of this process (published)
    mask_same:  other targets of the same image are no candidates; published: they are
    """

    def __init__(
        self, width, size=65536, dtype=torch.float32, init="empty", candidates="global", mask_same=True, seed=0
    ):
        super().__init__()
        if size < 1:
            raise UserError(f"a bank of {size} targets is empty: it needs at least 1")
        self.candidates, self.mask_same = candidates, mask_same
        bank = torch.zeros(size, width)
        if init == "random":
            bank = unit(torch.rand(size, width, generator=torch_generator(seed, "bank")))
        self.bank = FeatureQueue(bank.to(dtype))
        self.image_ids = FeatureQueue(torch.full((size,), EMPTY if init == "empty" else UNKNOWN))

    def forward(self, images, texts, targets, scale, image_ids=None):
        """images, texts, targets: (B, D);  scale: 1 / temperature;  image_ids: int64 (B,), or None where unknown."""
        ids = _ids(image_ids, targets)
        with full_precision(images.device):
            features, targets = _normalised(images, texts), unit(at_least_single(targets.detach()))
            columns, first = (targets, 0) if self.candidates == "local" else (dist.gather_rows(targets), None)
            column_ids = ids if self.candidates == "local" else dist.gather_rows(ids)
            near, labels = _near_logits(features, columns, scale, ids, column_ids if self.mask_same else None, first)
            bank = self.bank.features
            far = ((scale * features).to(bank.dtype) @ bank.T).to(near.dtype)  # (2B, K)
            far = far.masked_fill(self._hidden(ids).repeat(2, 1), -torch.inf)
            return _report(torch.cat([near, far], 1), labels)

    def _hidden(self, ids):
        """(B or 1, K): bank slots that are no candidates, of each row where images may repeat."""
        stored = self.image_ids.features
        hidden = (stored == EMPTY)[None].expand(len(ids), -1)
        return hidden | ((stored == ids[:, None]) & (stored != UNKNOWN)) if self.mask_same else hidden

    @torch.no_grad()
    def remember(self, targets, image_ids=None):
        """Write every process's targets (B, D) and the ids of their images over the oldest."""
        self.bank.add(unit(at_least_single(targets)))
        self.image_ids.add(_ids(image_ids, targets))


def batch_distillation(images, texts, targets, scale, image_ids=None):
    """Each image and text must find its teacher target among those of the whole batch, over all processes.

    Without image_ids, int64 (B,), other targets of the same image count as negatives.
    """
    with full_precision(images.device):
        features, targets = _normalised(images, texts), unit(at_least_single(targets.detach()))
        ids = None if image_ids is None else _ids(image_ids, targets)
        column_ids = None if ids is None else dist.gather_rows(ids)
        return _report(*_near_logits(features, dist.gather_rows(targets), scale, ids, column_ids))


def mse_distillation(images, texts, targets):
    """Mean squared difference of the head's outputs from the teacher's targets, (B, D) each, none normalised."""
    losses = [F.mse_loss(at_least_single(side), at_least_single(targets.detach())) for side in (images, texts)]
    return _sides(*losses)


def class_distillation(images, texts, teacher_logits):
    """SHRe: KL divergence of the student's classes from the teacher's, (B, C) logits each, summed over classes."""
    targets = at_least_single(teacher_logits.detach()).log_softmax(1)
    losses = [
        F.kl_div(at_least_single(side).log_softmax(1), targets, reduction="batchmean", log_target=True)
        for side in (images, texts)
    ]
    return _sides(*losses)


def _normalised(images, texts):
    """Both sides under each other, (2B, D): one product serves both."""
    return unit(torch.cat([at_least_single(images), at_least_single(texts)]))


def _near_logits(features, columns, scale, ids, column_ids=None, first=None):
    """Logits (2B, N) with the batch's targets, and the column (2B,) of each row's own one.

    first: column of row 0's own target; None: the targets are gathered, so it is rank * B
    """
    B = len(features) // 2
    own = torch.arange(B, device=features.device) + (dist.rank() * B if first is None else first)
    logits = (scale * features) @ columns.T
    if column_ids is not None:
        same = (ids[:, None] == column_ids) & (column_ids != UNKNOWN)  # (B, N)
        same[torch.arange(B, device=own.device), own] = False
        logits = logits.masked_fill(same.repeat(2, 1), -torch.inf)
    return logits, own.repeat(2)


def _report(logits, labels):
    losses = F.cross_entropy(logits, labels, reduction="none").unflatten(0, (2, -1)).mean(1)
    right = (logits.detach().argmax(1) == labels).unflatten(0, (2, -1)).float().mean(1)
    return _sides(*losses) | {"kd_image_acc": right[0], "kd_text_acc": right[1], "kd_acc": right.mean()}


def _sides(image_loss, text_loss):
    return {"kd_image_loss": image_loss, "kd_text_loss": text_loss, "kd_loss": (image_loss + text_loss) / 2}


def _ids(image_ids, like):
    if image_ids is None:
        return torch.full((len(like),), UNKNOWN, device=like.device)
    return image_ids.to(like.device)
