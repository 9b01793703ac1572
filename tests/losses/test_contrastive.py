"""Tiled contrastive losses against their plain forms, and open_clip's."""

import math

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch.nn import functional as F

from clip_vl.losses import tiled
from clip_vl.losses.alignment import build_loss
from clip_vl.losses.contrastive import simcse_loss


def plain_info_nce(x, y, scale, labels):
    logits = scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T
    targets = torch.arange(len(x))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def plain_unicl(x, y, scale, labels):
    logits = scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T
    positives = torch.eye(len(x), dtype=torch.bool) | (labels[:, None] == labels) & (labels != -1)
    targets = positives.to(x.dtype) / positives.sum(1, keepdim=True)
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def plain_siglip(x, y, scale, labels):
    logits = scale * F.normalize(x, dim=-1) @ F.normalize(y, dim=-1).T - 10
    return -F.logsigmoid((2 * torch.eye(len(x)) - 1) * logits).sum() / len(x)


PLAIN = {"InfoNCE": plain_info_nce, "UniCL": plain_unicl, "SigLIP": plain_siglip}


def batch(B, dtype, noise=1.0):
    generator = torch.Generator().manual_seed(B)
    x, y = torch.randn(2, B, 16, dtype=dtype, generator=generator)
    return x, x + noise * y, torch.randint(-1, 5, (B,), generator=generator)


def value_and_gradients(loss, x, y, scale, labels):
    x, y, scale = x.clone().requires_grad_(), y.clone().requires_grad_(), scale.clone().requires_grad_()
    value = loss(x, y, scale, labels)
    (3 * value).backward()
    return value.detach(), x.grad, y.grad, scale.grad


def ours(name):
    loss = build_loss(name, 16)
    bias = torch.tensor(-10.0)
    return lambda x, y, scale, labels: loss(x, y, logit_scale=scale, logit_bias=bias, labels=labels)


@pytest.mark.parametrize("B", [1, 7, 20])
@pytest.mark.parametrize("name", PLAIN)
def test_tiles_give_the_plain_loss_and_its_gradients(name, B, monkeypatch):
    monkeypatch.setitem(tiled.TILE, "cpu", 7)
    x, y, labels = batch(B, torch.float64)
    given = (x, y, torch.tensor(14.0, dtype=torch.float64), labels)
    for found, expected in zip(value_and_gradients(ours(name), *given), value_and_gradients(PLAIN[name], *given)):
        assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("noise, scale", [(1.0, 14.0), (0.3, 100.0), (0.01, 100.0)])
@pytest.mark.parametrize("name", PLAIN)
def test_single_precision_is_as_exact_as_the_plain_form(name, noise, scale, monkeypatch):
    """Also where all pairs are found and probabilities are next to 1: both against double precision."""
    monkeypatch.setitem(tiled.TILE, "cpu", 50)
    x, y, labels = batch(120, torch.float32, noise)
    given = (x, y, torch.tensor(scale), labels)
    exact = value_and_gradients(
        PLAIN[name], *(tensor.double() if tensor.is_floating_point() else tensor for tensor in given)
    )
    for found, plain, true in zip(
        value_and_gradients(ours(name), *given), value_and_gradients(PLAIN[name], *given), exact
    ):
        error, allowed = (found - true).norm() / true.norm(), (plain - true).norm() / true.norm()
        assert error < max(1e-6, 2 * allowed)


def test_info_nce_is_open_clips():
    x, y, labels = batch(12, torch.float32)
    expected = ClipLoss()(F.normalize(x, dim=-1), F.normalize(y, dim=-1), torch.tensor(9.0))
    assert torch.allclose(ours("InfoNCE")(x, y, torch.tensor(9.0), labels), expected, rtol=1e-6)


def test_siglip_is_open_clips():
    x, y, labels = batch(12, torch.float32)
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    expected = SigLipLoss()(x, y, torch.tensor(9.0), torch.tensor(-10.0))
    assert torch.allclose(ours("SigLIP")(x, y, torch.tensor(9.0), labels), expected, rtol=1e-6)


def test_siglip_bias_has_the_gradient_of_the_plain_form():
    x, y, _ = batch(12, torch.float64)
    scale, bias = torch.tensor(9.0, dtype=torch.float64), torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    build_loss("SigLIP", 16)(x, y, logit_scale=scale, logit_bias=bias).backward()
    step = torch.tensor(1e-6, dtype=torch.float64)
    high, low = (build_loss("SigLIP", 16)(x, y, logit_scale=scale, logit_bias=bias.detach() + d) for d in (step, -step))
    assert bias.grad.item() == pytest.approx(((high - low) / 2e-6).item(), rel=1e-6)


def test_half_precision_features_are_compared_in_single_precision():
    x, y, labels = batch(12, torch.float32)
    x, y = x.bfloat16(), y.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = value_and_gradients(ours("InfoNCE"), x, y, torch.tensor(50.0), labels)
    expected = value_and_gradients(plain_info_nce, x.float(), y.float(), torch.tensor(50.0), labels)
    assert found[0].dtype == torch.float32 and torch.allclose(found[0], expected[0], rtol=1e-6)
    assert torch.allclose(found[1].float(), expected[1], rtol=1e-2, atol=1e-3) and found[1].dtype == torch.bfloat16


def test_no_tensor_is_larger_than_a_tile_or_the_features(monkeypatch):
    """The batch's 512 x 512 logits would be 1 MiB; tiles of 64 and gradients of width 16 are 16 and 32 KiB."""
    monkeypatch.setitem(tiled.TILE, "cpu", 64)
    x, y, labels = batch(512, torch.float32)
    with torch.profiler.profile(profile_memory=True) as profile:
        value_and_gradients(ours("InfoNCE"), x, y, torch.tensor(10.0), labels)
    largest = max(event.cpu_memory_usage for event in profile.profiler.function_events if event.name == "[memory]")
    assert 0 < largest <= 64 * 1024


def test_simcse_is_info_nce_at_a_scale_of_twenty():
    x, y, labels = batch(12, torch.float32)
    assert torch.allclose(simcse_loss(x, y), plain_info_nce(x, y, math.exp(2.996), labels), rtol=1e-6)


def test_the_scale_of_simcse_is_not_rounded_to_the_dtype_of_the_features():
    x, y, labels = batch(12, torch.bfloat16)
    expected = plain_info_nce(x.float(), y.float(), math.exp(2.996), labels)
    found = simcse_loss(x, y)
    assert found.dtype == torch.float32 and found.item() == pytest.approx(expected.item(), rel=1e-6)
