"""The byte dropout keeps what it promises."""

import pytest
import torch

from clip_vl.models.dropout import Dropout, dropout


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_the_kept_share_is_the_probability_rounded_to_a_byte(p):
    kept = (dropout(torch.ones(1_000_000), p) > 0).float().mean().item()
    assert kept == pytest.approx(round((1 - p) * 256) / 256, abs=4 * (p * (1 - p) / 1e6) ** 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_kept_elements_are_scaled_by_the_rounded_rate(dtype):
    values = dropout(torch.ones(1000, dtype=dtype), 0.1).unique()
    assert values.dtype == dtype
    assert values.tolist() == pytest.approx([0, 256 / 230], rel=1e-2 if dtype == torch.bfloat16 else 1e-6)


def test_the_expectation_stays():
    x = torch.full((2_000_000,), 3.0)
    assert dropout(x, 0.1).mean().item() == pytest.approx(3.0, abs=5e-3)


def test_gradients_pass_where_elements_were_kept():
    x = torch.ones(1003, requires_grad=True)  # not a multiple of the eight bytes of a draw
    y = dropout(x, 0.3)
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def test_evaluation_and_probability_zero_change_nothing():
    x = torch.randn(10)
    layer = Dropout(0.5)
    assert not torch.equal(layer(x), x)
    assert layer.eval()(x) is x
    assert Dropout(0.0)(x) is x


def test_draws_repeat_with_the_default_generators_seed():
    draws = [dropout(torch.ones(100), 0.5) for _ in range(2) if torch.manual_seed(3)]
    assert torch.equal(draws[0], draws[1])


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_a_probability_outside_zero_to_one_is_refused(p):
    with pytest.raises(ValueError, match="probability"):
        Dropout(p)
