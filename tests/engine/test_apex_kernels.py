"""--apex with a stand-in of apex's signatures and formulas: the same updates under the same names, or a line."""

import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine.apex_kernels import use_apex
from clip_vl.engine.checkpoint import flatten_optimizer, restore_optimizer
from clip_vl.engine.optim import Updater
from clip_vl.engine.optimizers import build_optimizer

GPU, CPU = torch.device("cuda"), torch.device("cpu")  # the stand-in computes on the CPU whatever it is told
ROOT = Path(__file__).resolve().parents[2]


class FusedAdam(torch.optim.Optimizer):
    """Apex's, by its documentation: one count of steps for each group, and a zero_grad without arguments."""

    def __init__(self, params, lr=1e-3, bias_correction=True, betas=(0.9, 0.999), eps=1e-8, adam_w_mode=True,
                 weight_decay=0.0, amsgrad=False, set_grad_none=True):  # fmt: skip
        defaults = {"lr": lr, "bias_correction": bias_correction, "betas": betas, "eps": eps}
        super().__init__(params, defaults | {"weight_decay": weight_decay})
        self.adam_w_mode = adam_w_mode

    @torch.no_grad()
    def step(self, closure=None, grads=None):
        for group in self.param_groups:
            t = group["step"] = group.get("step", 0) + 1
            beta1, beta2 = group["betas"]
            for p in (p for p in group["params"] if p.grad is not None):
                s = self.state[p]
                if not s:
                    s["exp_avg"], s["exp_avg_sq"] = torch.zeros_like(p), torch.zeros_like(p)
                g = p.grad + (0 if self.adam_w_mode else group["weight_decay"]) * p
                s["exp_avg"].lerp_(g, 1 - beta1)
                s["exp_avg_sq"].lerp_(g * g, 1 - beta2)
                c1, c2 = (1 - beta1**t, 1 - beta2**t) if group["bias_correction"] else (1, 1)
                update = s["exp_avg"] / c1 / ((s["exp_avg_sq"] / c2).sqrt() + group["eps"])
                p -= group["lr"] * (update + (group["weight_decay"] if self.adam_w_mode else 0) * p)

    def zero_grad(self):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad = None


class FusedLayerNorm(nn.Module):
    def __init__(self, normalized_shape, eps=1e-5, elementwise_affine=True):
        super().__init__()
        self.normalized_shape, self.eps = normalized_shape, eps
        self.weight, self.bias = (nn.Parameter(torch.zeros(normalized_shape)) for _ in range(2))

    def forward(self, x):
        return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)


@pytest.fixture
def apex(monkeypatch):
    for name, member in (("", None), (".optimizers", FusedAdam), (".normalization", FusedLayerNorm)):
        module = ModuleType(f"apex{name}")
        if member:
            setattr(module, member.__name__, member)
        monkeypatch.setitem(sys.modules, module.__name__, module)


def training(name, with_apex):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4, eps=1e-12), nn.Linear(4, 1))
    optimizers = {"adam": (build_optimizer(name, model.parameters(), 0.1, 0.01), lambda update: 1 / (1 + update))}
    if with_apex:
        optimizers = use_apex(model, optimizers, GPU)
    return model, Updater(model, optimizers, device=CPU)


def train(model, updater, updates):
    for _ in range(updates):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(updater.update))
        updater.backward(model(x).pow(2).mean())
        updater.step()


@pytest.mark.parametrize("name", ["hf_adamw", "bert", "adamw", "adam"])
def test_fused_adam_and_layer_norm_train_as_torchs_do(apex, capsys, name):
    (plain, updater), (model, fused) = training(name, False), training(name, True)
    assert "--apex: FusedAdam for adam, FusedLayerNorm in 1 places" in capsys.readouterr().out
    assert isinstance(fused.optimizers["adam"], FusedAdam) and isinstance(model[1], FusedLayerNorm)
    train(plain, updater, 4)
    train(model, fused, 4)
    for key, value in plain.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, atol=1e-6), key


@pytest.mark.parametrize("name", ["hf_adamw", "bert"])
def test_fused_adam_resumes_to_the_same_bits(apex, name):
    whole, updater = training(name, True)
    train(whole, updater, 2)
    flat, meta = flatten_optimizer(updater.optimizers["adam"])
    model, again = training(name, True)
    model.load_state_dict(whole.state_dict())
    restore_optimizer(again.optimizers["adam"], {key: value.clone() for key, value in flat.items()}, meta)
    again.update = updater.update
    for m, u in ((whole, updater), (model, again)):
        train(m, u, 2)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), model.parameters()))


def test_other_optimizers_stay_and_what_is_not_there_is_said(apex, capsys, monkeypatch):
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    sgd = {"sgd": (build_optimizer("sgd", model.parameters(), 0.1), None)}
    assert use_apex(model, sgd, CPU) == sgd and type(model[1]) is nn.LayerNorm
    assert "apex's kernels are for GPUs" in capsys.readouterr().out
    assert use_apex(model, sgd, GPU) == sgd and isinstance(model[1], FusedLayerNorm)
    assert "FusedAdam for no optimizer" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "apex.optimizers", None)
    model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2))
    adam = {"adam": (build_optimizer("adamw", model.parameters(), 0.1), None)}
    assert use_apex(model, adam, GPU) == adam and type(model[1]) is nn.LayerNorm
    assert "apex is not installed with its CUDA extensions" in capsys.readouterr().out


def test_one_file_alone_knows_of_apex():
    files = {path.name: path.read_text() for path in (ROOT / "clip_vl").rglob("*.py")}
    assert [name for name, text in files.items() if re.search(r"(from|import) apex\b", text)] == ["apex_kernels.py"]
