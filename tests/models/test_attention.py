"""One rule, several branches, the same numbers."""

import pytest
import torch
from torch.nn import functional as F

from clip_vl.models import attention
from clip_vl.models.attention import attend
from clip_vl.models.fused.bert import attention_bias


def inputs(L, dtype=torch.float32):
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 3, L, 8, dtype=dtype, requires_grad=True) for _ in range(3))
    keep = torch.ones(2, L)
    keep[0, L // 2 :] = 0
    return query, key, value, attention_bias(keep)


@pytest.mark.parametrize("with_bias", [True, False])
def test_the_plain_and_the_fused_branch_agree_in_values_and_gradients(monkeypatch, with_bias):
    *qkv, bias = inputs(20)
    results = []
    for plain in (True, False):
        monkeypatch.setattr(attention, "_plain_is_faster", lambda *_, plain=plain: plain)
        y = attend(*qkv, bias if with_bias else None)
        results.append((y, *torch.autograd.grad(y.square().sum(), qkv)))
    for plain, fused in zip(*results):
        assert torch.allclose(plain, fused, atol=1e-5)


@pytest.mark.parametrize(
    "dtype, L, dropout, fused",
    [
        (torch.float32, 199, 0.0, False),
        (torch.float32, 200, 0.0, True),
        (torch.bfloat16, 499, 0.0, False),
        (torch.bfloat16, 500, 0.0, True),
        (torch.float32, 200, 0.1, False),
    ],
)
def test_on_cpus_the_fused_kernel_takes_over_from_a_measured_length(monkeypatch, dtype, L, dropout, fused):
    calls = []
    kernel = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    *qkv, bias = inputs(L, dtype)
    assert attend(*qkv, bias, dropout).dtype == dtype
    assert bool(calls) == fused


def test_dropped_keys_weigh_exactly_nothing():
    query, key, value, bias = inputs(6)
    changed = value.detach().clone()
    changed[0, :, 3:] = 1e4
    assert torch.equal(attend(query, key, value, bias), attend(query, key, changed, bias))


def test_dropout_is_applied_to_the_weights():
    """With constant values the output is the sum of the surviving weights: 0 or a multiple of 256 / 128."""
    query = key = torch.zeros(1, 1, 4, 8)
    sums = attend(query, key, torch.ones(1, 1, 4, 8), dropout=0.5)
    assert set(sums.unique().tolist()) <= {0.0, 0.5, 1.0, 1.5, 2.0}
    assert not torch.equal(sums, torch.ones_like(sums))
