"""Distillation losses against the golden vectors of the published code and closed forms; the bank's order and masks."""

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_vl.losses.distill.contrast import image_text_contrast
from clip_vl.losses.distill.targets import (
    BankDistillation,
    batch_distillation,
    class_distillation,
    mse_distillation,
)

GOLDEN = Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data")) / "golden" / "dev_smke.json"
needs_golden = pytest.mark.skipif(not GOLDEN.exists(), reason="CLIP_VL_REAL_DATA has no golden/dev_smke.json")
SCALE = 1 / 0.07


def wave(shape, a, b, scale=1):
    values = scale * np.sin(a + b * np.arange(math.prod(shape), dtype=np.float64))
    return torch.from_numpy(values.astype(np.float32).reshape(shape))


def rows(shape, a, b):
    return torch.nn.functional.normalize(wave(shape, a, b), dim=1)


IMAGES, TEXTS, TARGETS = rows((4, 6), 0.4, 1.3), rows((4, 6), 0.9, 2.1), rows((4, 6), 1.3, 0.77)


@pytest.fixture(scope="module")
def golden():
    return json.loads(GOLDEN.read_text())["losses"]


def golden_bank(**options):
    loss = BankDistillation(6, 8, init="random", **options)
    loss.bank.features.copy_(rows((8, 6), 0.2, 1.9))
    return loss


@needs_golden
def test_the_bank_loss_is_the_published_one(golden):
    found = golden_bank()(IMAGES, TEXTS, TARGETS, SCALE)
    expected = golden["kd_bank"]
    assert found["kd_loss"].item() == pytest.approx(expected["loss"], rel=1e-6)
    assert found["kd_image_loss"].item() == pytest.approx(expected["image_loss"], rel=1e-6)
    assert found["kd_text_loss"].item() == pytest.approx(expected["text_loss"], rel=1e-6)
    assert (found["kd_image_acc"], found["kd_text_acc"]) == (expected["acc_image"], expected["acc_text"])


@needs_golden
def test_the_batch_loss_is_the_published_validation_loss(golden):
    found = batch_distillation(IMAGES, TEXTS, TARGETS, SCALE)
    for name in ("loss", "image_loss", "text_loss"):
        assert found[f"kd_{name}"].item() == pytest.approx(golden["kd_in_batch_validation"][name], rel=1e-6)


@needs_golden
def test_the_bank_is_written_in_the_published_order(golden):
    loss = golden_bank()
    for k, step in enumerate(golden["fifo_3_steps"]["steps"]):
        given = rows((2, 6), 0.5 + k, 1.1)
        loss.remember(torch.cat([given, -given]))  # rank 0 and rank 1 in the gathered order
        assert int(loss.bank.place) == step["pointer_after"]
        torch.testing.assert_close(loss.bank.features[:, 0], torch.tensor(step["bank_first_component"]))


@needs_golden
def test_image_text_contrast_is_the_published_one(golden):
    expected = golden["itc"]
    inner = image_text_contrast(rows((4, 12), 0.33, 0.7), rows((4, 12), 0.61, 0.9), SCALE)[0]
    final, accuracies = image_text_contrast(IMAGES, TEXTS, 20.0)
    assert inner.item() == pytest.approx(expected["loss_x_interm"], rel=1e-6)
    assert final.item() == pytest.approx(expected["loss_x"], rel=1e-6)
    total = (inner + final) / 2 + golden_bank()(IMAGES, TEXTS, TARGETS, SCALE)["kd_loss"]
    assert total.item() == pytest.approx(expected["total_with_kd"], rel=1e-6)
    right = ((IMAGES @ TEXTS.T).argmax(1) == torch.arange(4)).float().mean()
    assert accuracies["image_acc"] == right


def test_unfilled_slots_are_no_candidates_and_a_partly_filled_bank_is_a_short_one():
    loss = BankDistillation(6, 8)
    empty = loss(IMAGES, TEXTS, TARGETS, SCALE)["kd_loss"]
    assert empty.item() == pytest.approx(batch_distillation(IMAGES, TEXTS, TARGETS, SCALE)["kd_loss"].item())
    loss.remember(rows((3, 6), 0.2, 1.9))
    short = BankDistillation(6, 3)
    short.remember(rows((3, 6), 0.2, 1.9))
    expected = short(IMAGES, TEXTS, TARGETS, SCALE)["kd_loss"]
    assert loss(IMAGES, TEXTS, TARGETS, SCALE)["kd_loss"].item() == pytest.approx(expected.item())
    assert expected > empty


def test_targets_of_the_same_image_are_no_candidates():
    """Rows 0 and 2 show one image, and so does one slot of the bank: their logits do not reach the loss."""
    ids, loss = torch.tensor([5, 6, 5, -1]), BankDistillation(6, 4)
    loss.remember(rows((3, 6), 0.2, 1.9), torch.tensor([5, 9, -1]))
    logits = SCALE * torch.cat([IMAGES @ TARGETS.T, IMAGES @ loss.bank.features[:3].T], 1)
    logits[0, 2] = logits[2, 0] = logits[0, 4] = logits[2, 4] = -torch.inf
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    assert loss(IMAGES, TEXTS, TARGETS, SCALE, ids)["kd_image_loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    plain = BankDistillation(6, 4, mask_same=False)
    plain.load_state_dict(loss.state_dict())
    without = plain(IMAGES, TEXTS, TARGETS, SCALE, ids)["kd_loss"]
    assert without > loss(IMAGES, TEXTS, TARGETS, SCALE, ids)["kd_loss"]


def test_pairs_of_one_image_are_no_negatives_of_each_other():
    ids = torch.tensor([5, 6, 5, -1])
    logits = 20 * IMAGES @ TEXTS.T
    logits[0, 2] = logits[2, 0] = -torch.inf
    expected = (torch.nn.functional.cross_entropy(logits, torch.arange(4))
                + torch.nn.functional.cross_entropy(logits.T, torch.arange(4))) / 2  # fmt: skip
    assert image_text_contrast(IMAGES, TEXTS, 20.0, ids)[0].item() == pytest.approx(expected.item(), rel=1e-6)


def test_no_gradient_reaches_the_teacher_and_the_bank_may_move_after_the_backward_pass():
    loss, images, targets = BankDistillation(6, 8), IMAGES.clone().requires_grad_(), TARGETS.clone().requires_grad_()
    for _ in range(3):
        loss(images, TEXTS, targets, SCALE)["kd_loss"].backward()
        loss.remember(targets)
    assert targets.grad is None and images.grad.abs().max() > 0
    assert int(loss.bank.place) == 4 and not loss.bank.features.requires_grad


def test_a_bank_of_bf16_gives_the_loss_of_fp32_to_a_thousandth():
    torch.manual_seed(0)
    given = [torch.randn(16, 64) for _ in range(3)]
    losses = []
    for dtype in (torch.float32, torch.bfloat16):
        loss = BankDistillation(64, 4096, dtype=dtype)
        loss.remember(torch.randn(4096, 64, generator=torch.Generator().manual_seed(1)))
        assert loss.bank.features.dtype == dtype
        losses.append(loss(*given, SCALE)["kd_loss"].item())
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


def test_the_random_bank_is_the_published_noise():
    """Uniform numbers in [0, 1), normalised: all components are positive; every slot is a candidate."""
    loss = BankDistillation(48, 200, init="random", seed=3)
    bank = loss.bank.features
    assert bank.min() >= 0 and torch.allclose(bank.norm(dim=1), torch.ones(200))
    assert torch.equal(bank, BankDistillation(48, 200, init="random", seed=3).bank.features)
    logits = SCALE * torch.cat([IMAGES @ TARGETS.T, IMAGES @ golden_bank().bank.features.T], 1)
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(4))
    assert golden_bank()(IMAGES, TEXTS, TARGETS, SCALE)["kd_image_loss"].item() == pytest.approx(expected.item())


def test_mse_and_class_distillation_have_closed_forms():
    found = mse_distillation(torch.zeros(2, 3), torch.full((2, 3), 2.0), torch.ones(2, 3))
    assert [found[name].item() for name in ("kd_image_loss", "kd_text_loss", "kd_loss")] == [1, 1, 1]
    teacher = torch.tensor([[0.0, math.log(3)]])  # probabilities 1/4 and 3/4
    found = class_distillation(torch.zeros(1, 2), teacher, teacher)
    divergence = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)
    assert found["kd_image_loss"].item() == pytest.approx(divergence, rel=1e-6)
    assert found["kd_text_loss"].item() == pytest.approx(0, abs=1e-7)
