"""On two processes distillation has the losses, the bank and the weights of one process with the same global batch."""

import json
import os

import pytest
import torch

from clip_vl import distill
from clip_vl.engine.checkpoint import load_latest
from clip_vl.flags.parser import parse
from clip_vl.models.distill import teachers
from clip_vl.models.distill.beit import BeitSpec

SMALL = ["--random_init", "--image_blocks", "1", "--text_layers", "1", "--width", "24", "--heads", "2", "--patch", "8",
         "--image_resolution", "16", "--bank_size", "12", "--report_step", "1", "--lr", "1e-3", "--no-bf16",
         "--epochs", "2"]  # fmt: skip


def case(folder):
    """Train in `folder`/run_W with 8 pairs in each global batch."""
    W = int(os.environ["WORLD_SIZE"])
    small = BeitSpec(blocks=1, width=24, heads=2, hidden=48, patch=8, resolution=16)
    teachers.BeitSpec = lambda resolution: small
    given = [*SMALL, "--train_data", folder / "pairs.csv", "--bert", folder, "--datasets_dir", folder,
             "--output", folder / f"run_{W}", "--batch_size", 8 // W]  # fmt: skip
    distill.main(parse(distill.DistillFlags, distill.__doc__, [str(flag) for flag in given]))


@pytest.fixture(scope="module")
def folder(programs, tmp_path_factory, caption_folder):
    folder = caption_folder(tmp_path_factory.mktemp("ranks"), rows=16, side=16, width=24)
    programs.cases(__file__, folder, 1, 2)
    return folder


def test_two_processes_train_as_one(folder):
    logs = [[json.loads(line) for line in (folder / f"run_{W}" / "log.jsonl").read_text().splitlines()] for W in (1, 2)]
    assert len(logs[0]) == len(logs[1]) == 4
    for one, two in zip(*logs):
        assert {n: two[n] for n in one if "seconds" not in n} == pytest.approx(
            {n: v for n, v in one.items() if "seconds" not in n}, rel=1e-4, abs=1e-5
        )
    (_, one, _), (_, two, _) = (load_latest(folder / f"run_{W}" / "checkpoints") for W in (1, 2))
    assert torch.equal(one["bank"]["image_ids.features"], two["bank"]["image_ids.features"])
    torch.testing.assert_close(one["bank"]["bank.features"], two["bank"]["bank.features"], rtol=1e-4, atol=1e-5)
    for name in one["model"]:  # Adam's first steps magnify the last bits
        torch.testing.assert_close(one["model"][name], two["model"][name], rtol=1e-2, atol=2e-4)
