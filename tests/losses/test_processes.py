"""On 2 and 4 processes every loss, its gradients and its state are those of the whole batch on one."""

from pathlib import Path

import pytest
import torch

from clip_vl.engine import dist
from clip_vl.losses import tiled
from clip_vl.losses.alignment import LOSSES, build_loss
from clip_vl.losses.contrastive import simcse_loss
from clip_vl.losses.hard_negatives import hard_negative_loss

ROOT = Path(__file__).resolve().parent.parent.parent
N, D, K = 24, 6, 10
CASES = {name: (name, {}) for name in LOSSES} | {
    "SimReg original": ("SimReg", {"variant": "original"}),
    "VICReg original": ("VICReg", {"variant": "original"}),
    "BarlowTwins original": ("BarlowTwins", {"variant": "original"}),
    "ProtoCPC Sinkhorn": ("ProtoCPC", {"sinkhorn": True}),
    "SEED, queue of 31": ("SEED", {"queue_size": 31}),  # longer than a batch, which does not divide it
}


def inputs(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mine(tensor):
    return tensor.chunk(dist.world_size())[dist.rank()]


def two_steps(name, options):
    """Two training steps: {losses, the second one's gradients, state after}. Gradients are those before averaging."""
    torch.manual_seed(0)
    loss = build_loss(name, D, **{"queue_size": K, "n_prototypes": D} | options).double()
    labels = torch.tensor([0, 1, 2, -1, -1, 0] * (N // 6))
    found = {"losses": []}
    for step in range(2):
        student, teacher = (mine(inputs(N, D, seed=2 * step + side)).requires_grad_() for side in (0, 1))
        scale, bias = (torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in (8.0, -3.0))
        value = loss(student, teacher, logit_scale=scale, logit_bias=bias, labels=mine(labels))
        value.backward()
        found["losses"].append(value.detach())
    found["gradients"] = [x.grad for x in (student, teacher)]
    found["scalars"] = [x.grad for x in (scale, bias)]
    return found | {"state": loss.state_dict()}


def hard_negatives():
    """Rows of a process: images | hard images, and texts | hard texts | negatives | negatives of the hard ones."""
    images, texts = mine(inputs(N, D)).requires_grad_(), mine(inputs(2 * N, D, seed=1).view(2, N, D).transpose(0, 1))
    texts = texts.transpose(0, 1).reshape(-1, D).contiguous().requires_grad_()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    value = hard_negative_loss(images, texts, scale, mine(torch.arange(N) % 20))
    value.backward()
    return {"losses": [value.detach()], "gradients": [images.grad, texts.grad.view(2, -1, D).transpose(0, 1)],
            "scalars": [scale.grad], "state": {}}  # fmt: skip


def simcse():
    first, second = (mine(inputs(N, D, seed=side)).float().requires_grad_() for side in (0, 1))
    value = simcse_loss(first, second)
    value.backward()
    return {"losses": [value.detach()], "gradients": [first.grad, second.grad], "scalars": [], "state": {}}


def case(folder):
    tiled.TILE["cpu"] = 4  # several tiles a process, pairs inside and outside of them
    found = {name: two_steps(*given) for name, given in CASES.items()}
    return found | {"hard negatives": hard_negatives(), "SimCSE": simcse()}


@pytest.fixture(scope="module")
def results(programs, tmp_path_factory):
    """{W: what each of W processes found}."""
    return programs.cases(__file__, tmp_path_factory.mktemp("ranks"), 1, 2, 4)


@pytest.mark.parametrize("W", [2, 4])
@pytest.mark.parametrize("name", [*CASES, "hard negatives", "SimCSE"])
def test_processes_find_the_loss_gradients_and_state_of_the_whole_batch(results, name, W):
    whole, parts = results[1][0][name], [found[name] for found in results[W]]
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if name in ("SimCSE", "RKD") else {"rtol": 1e-9, "atol": 1e-12}
    for step, expected in enumerate(whole["losses"]):
        assert torch.allclose(sum(part["losses"][step] for part in parts) / W, expected, **tolerance)
    for i, expected in enumerate(whole["gradients"]):
        given = [part["gradients"][i] for part in parts]
        assert (expected is None) == any(gradient is None for gradient in given)
        if expected is not None:
            assert expected.abs().max() > 0
            assert torch.allclose(torch.cat(given) / W, expected, **tolerance)  # 1 / W: DDP's mean
    for i, expected in enumerate(whole["scalars"]):
        if expected is not None:
            assert torch.allclose(sum(part["scalars"][i] for part in parts) / W, expected, **tolerance)
    for key, expected in whole["state"].items():
        assert all(torch.allclose(part["state"][key], expected, **tolerance) for part in parts), key
