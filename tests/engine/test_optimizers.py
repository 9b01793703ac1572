"""Each optimizer of --optim against its formula in numpy, and in the hands of `Updater`."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from clip_vl.engine.optim import Updater
from clip_vl.engine.optimizers import build_optimizer

LR, DECAY, EPS, BETA1, BETA2 = 0.01, 0.1, 1e-6, 0.9, 0.999
START = np.array([0.5, -2.0, 3.0])
GRADIENTS = np.array([[1e-5, 1.0, -3.0], [2e-5, -0.5, 0.0], [1e-5, 0.25, 1e-6], [-1e-5, 2.0, 7.0]])


def bert(p, g, s, t):
    s["m"], s["v"] = BETA1 * s["m"] + (1 - BETA1) * g, BETA2 * s["v"] + (1 - BETA2) * g * g
    return p - LR * (s["m"] / (np.sqrt(s["v"]) + EPS) + DECAY * p)


def hf_adamw(p, g, s, t):
    s["m"], s["v"] = BETA1 * s["m"] + (1 - BETA1) * g, BETA2 * s["v"] + (1 - BETA2) * g * g
    p = p - LR * math.sqrt(1 - BETA2**t) / (1 - BETA1**t) * s["m"] / (np.sqrt(s["v"]) + EPS)
    return p - LR * DECAY * p


def adam(p, g, s, t, eps=1e-8):
    s["m"], s["v"] = BETA1 * s["m"] + (1 - BETA1) * g, BETA2 * s["v"] + (1 - BETA2) * g * g
    return p - LR * s["m"] / (1 - BETA1**t) / (np.sqrt(s["v"] / (1 - BETA2**t)) + eps)


def adamw(p, g, s, t):
    return adam(p - LR * DECAY * p, g, s, t, EPS)


def adamax(p, g, s, t):
    s["m"], s["v"] = BETA1 * s["m"] + (1 - BETA1) * g, np.maximum(BETA2 * s["v"], np.abs(g) + 1e-8)
    return p - LR / (1 - BETA1**t) * s["m"] / s["v"]


def rms(p, g, s, t):
    s["v"] = 0.99 * s["v"] + 0.01 * g * g
    return p - LR * g / (np.sqrt(s["v"]) + 1e-8)


def sgd(p, g, s, t):
    return p - LR * g


FORMULAS = [bert, hf_adamw, adamw, adam, adamax, rms, sgd]


def named(name, parameters):
    return build_optimizer(name, parameters, LR, DECAY, EPS)


@pytest.mark.parametrize("formula", FORMULAS, ids=lambda formula: formula.__name__)
def test_four_updates_are_those_of_the_formula(formula):
    """Also of a parameter that has no gradient in the second update, and counts its own."""
    p, q = (nn.Parameter(torch.tensor(START, dtype=torch.float64)) for _ in range(2))
    optimizer = named(formula.__name__, [p, q])
    references = [[START, {"m": 0.0, "v": 0.0}, 0] for _ in range(2)]
    for update, gradient in enumerate(GRADIENTS):
        for parameter, reference in ((p, references[0]), (q, references[1])):
            parameter.grad = torch.tensor(gradient)
            if parameter is q and update == 1:
                parameter.grad = None
                continue
            reference[2] += 1
            reference[0] = formula(reference[0], gradient, reference[1], reference[2])
        optimizer.step()
    for parameter, (expected, *_) in zip((p, q), references):
        np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=1e-12)


def test_epsilon_before_bias_correction_shortens_early_updates_of_small_gradients():
    """The AdamW of transformers 3.3 by torch's, for a gradient of 1e-5 and an epsilon of 1e-6."""
    parameters = {name: nn.Parameter(torch.zeros(1, dtype=torch.float64)) for name in ("hf_adamw", "adamw")}
    optimizers = {name: build_optimizer(name, [p], 1.0) for name, p in parameters.items()}
    ratios = {}
    for update in range(1, 1001):
        for name, p in parameters.items():
            p.data.zero_()
            p.grad = torch.full_like(p, 1e-5)
            optimizers[name].step()
        ratios[update] = (parameters["hf_adamw"] / parameters["adamw"]).item()
    assert [round(ratios[n], 2) for n in (1, 10, 100, 1000)] == [0.26, 0.55, 0.83, 0.98]


@pytest.mark.parametrize("name", ["bert", "hf_adamw"])
def test_an_update_that_is_not_finite_leaves_weights_moments_and_counts(name):
    model = nn.Linear(2, 1)
    optimizer = named(name, model.parameters())
    updater = Updater(model, {"adam": (optimizer, lambda update: 1.0)}, device=torch.device("cpu"))
    for value, counted in ((1.0, 1), (math.nan, 1), (2.0, 2)):
        before = model.weight.clone()
        updater.backward(model(torch.full((1, 2), value)).sum())
        norm, _ = updater.step()
        assert (norm is None) == math.isnan(value) == torch.equal(model.weight, before)
        assert optimizer.state[model.weight]["step"] == counted


def test_gradients_are_clipped_before_the_update():
    """A gradient of (3, 4) clipped to a norm of 1 leaves moments of a tenth of (0.6, 0.8)."""
    model = nn.ParameterList([nn.Parameter(torch.zeros(2))])
    optimizer = named("bert", model.parameters())
    updater = Updater(model, {"adam": (optimizer, lambda update: 1.0)}, device=torch.device("cpu"), max_grad_norm=1.0)
    updater.backward((torch.tensor([3.0, 4.0]) * model[0]).sum())
    updater.step()
    assert optimizer.state[model[0]]["exp_avg"].tolist() == pytest.approx([0.06, 0.08], abs=1e-6)
