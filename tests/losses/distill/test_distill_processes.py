"""On 2 and 4 processes the distillation losses, their gradients and the bank are those of the whole batch on one."""

import pytest
import torch

from clip_vl.engine import dist
from clip_vl.losses.distill.contrast import image_text_contrast
from clip_vl.losses.distill.targets import BankDistillation, batch_distillation

N, D = 8, 6
IDS = torch.tensor([3, 4, 3, -1, -1, 5, 6, 4])
NAMES = ("bank", "bank of 11, masked", "batch", "contrast")


def inputs(seed):
    return torch.randn(N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def mine(tensor):
    return tensor.chunk(dist.world_size())[dist.rank()]


def three_steps(name):
    """Losses of three steps, the last one's gradients, and the state of the bank."""
    size, ids = (11, IDS) if "masked" in name else (16, None)
    bank = BankDistillation(D, size, dtype=torch.float64).double() if "bank" in name else None
    found = {"losses": []}
    for step in range(3):
        images, texts, targets = (mine(inputs(3 * step + side)) for side in range(3))
        images, texts = images.requires_grad_(), texts.requires_grad_()
        scale = torch.tensor(8.0, dtype=torch.float64, requires_grad=True)
        if name == "contrast":
            value = image_text_contrast(images, texts, scale, mine(IDS))[0]
        elif name == "batch":
            value = batch_distillation(images, texts, targets, scale, mine(IDS))["kd_loss"]
        else:
            value = bank(images, texts, targets, scale, None if ids is None else mine(ids))["kd_loss"]
        value.backward()
        if bank is not None:
            bank.remember(targets, None if ids is None else mine(ids))
        found["losses"].append(value.detach())
    state = {} if bank is None else bank.state_dict()
    return found | {"gradients": [images.grad, texts.grad], "scale": scale.grad, "state": state}


def case(folder):
    return {name: three_steps(name) for name in NAMES}


@pytest.fixture(scope="module")
def results(programs, tmp_path_factory):
    """{W: what each of W processes found}."""
    return programs.cases(__file__, tmp_path_factory.mktemp("ranks"), 1, 2, 4)


@pytest.mark.parametrize("W", [2, 4])
@pytest.mark.parametrize("name", NAMES)
def test_processes_find_the_loss_gradients_and_bank_of_the_whole_batch(results, name, W):
    whole, parts = results[1][0][name], [found[name] for found in results[W]]
    for step, expected in enumerate(whole["losses"]):
        torch.testing.assert_close(sum(part["losses"][step] for part in parts) / W, expected)
    for i, expected in enumerate(whole["gradients"]):  # 1 / W: DistributedDataParallel's mean
        assert expected.abs().max() > 0
        torch.testing.assert_close(torch.cat([part["gradients"][i] for part in parts]) / W, expected)
    torch.testing.assert_close(sum(part["scale"] for part in parts) / W, whole["scale"])
    for key, expected in whole["state"].items():
        assert all(torch.equal(part["state"][key], expected) for part in parts), key
