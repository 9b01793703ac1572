"""Regression of unit vectors, and BYOL's term."""

import torch
from torch.nn import functional as F

from clip_vl.losses.alignment import build_loss
from clip_vl.losses.regression import byol_loss


def test_sim_reg_is_two_minus_two_cosines_and_the_original_a_dth_of_it():
    student, teacher = torch.randn(2, 6, 5)
    expected = (2 - 2 * F.cosine_similarity(student, teacher)).mean()
    assert torch.allclose(build_loss("SimReg", 5)(student, teacher), expected)
    assert torch.allclose(build_loss("SimReg", 5, variant="original")(student, teacher), expected / 5)


def test_byol_moves_the_augmented_view_towards_the_other_one_only():
    augmented, view = torch.randn(2, 6, 5).unbind(0)
    augmented.requires_grad_(), view.requires_grad_()
    loss = byol_loss(augmented, view)
    loss.backward()
    assert torch.allclose(loss, (augmented - view).square().sum() / 30)
    assert torch.allclose(augmented.grad, 2 * (augmented - view).detach() / 30) and view.grad is None
