"""RKD against the paper's formulas with all B^3 angles, and its memory."""

import pytest
import torch
from torch.nn import functional as F

from clip_vl.losses import relational
from clip_vl.losses.alignment import build_loss
from clip_vl.losses.base import unit


def distances(x):
    """The published code: squares of at least 1e-12, then 0 on the diagonal, over the mean of what is above 0."""
    d = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist").square().clamp(min=1e-12).sqrt()
    d = d.masked_fill(torch.eye(len(x), dtype=torch.bool), 0)
    return d / d[d > 0].mean()


def angles(x):
    edges = F.normalize(x[None] - x[:, None], dim=-1)  # [a, b]: from a to b
    return torch.einsum("abd,acd->abc", edges, edges)


def written_out(student, teacher):
    student, teacher = unit(student), unit(teacher)
    return F.smooth_l1_loss(angles(student), angles(teacher)) + 0.5 * F.smooth_l1_loss(
        distances(student), distances(teacher)
    )


@pytest.mark.parametrize("chunk", [1, 300, 2**22])
def test_loss_and_gradient_are_those_of_the_formulas(chunk, monkeypatch):
    monkeypatch.setattr(relational, "MAX_COSINES", chunk)
    student, teacher = torch.randn(2, 12, 5, dtype=torch.float64)
    one, other = student.clone().requires_grad_(), student.clone().requires_grad_()
    loss, expected = build_loss("RKD", 5)(one, teacher), written_out(other, teacher)
    loss.backward(), expected.backward()
    assert torch.allclose(loss.double(), expected, rtol=1e-6)
    assert torch.allclose(one.grad, other.grad, rtol=1e-5, atol=1e-8)


def test_near_points_keep_their_angles_in_single_precision():
    """Squared distances of 1e-6 beside norms of 1: a product in fp32 would leave a tenth of them."""
    features = torch.randn(1, 8) + 1e-3 * torch.randn(6, 8)
    student = unit(features)
    found = relational.cosines_at(relational.squared_distances(student), torch.arange(6))
    assert torch.allclose(found, angles(student.double()).float(), atol=1e-5)


def test_the_same_item_twice_counts_in_the_mean_distance():
    """In the published code its distance is 1e-6, which is above 0; without it the mean is larger by 30/28."""
    student, teacher = torch.randn(2, 6, 4, dtype=torch.float64)
    student[1], teacher[2], teacher[5] = student[0], teacher[3], teacher[3]
    loss = build_loss("RKD", 4, w_rkd_a=0.0)(student, teacher)
    expected = 0.5 * F.smooth_l1_loss(distances(unit(student)), distances(unit(teacher)))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    alike = torch.ones(3, 4)
    assert build_loss("RKD", 4)(alike, alike).item() == 0


def test_the_same_item_twice_gives_finite_gradients():
    student, teacher = torch.randn(2, 6, 4)
    student[1], teacher[2] = student[0], teacher[3]
    student.requires_grad_()
    build_loss("RKD", 4)(student, teacher).backward()
    assert torch.isfinite(student.grad).all() and student.grad.abs().max() < 10
