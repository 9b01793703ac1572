"""Distillation as a user runs it: every loss, resuming with the bank, a retrieval fine-tuning, and that it learns."""

import json

import numpy as np
import pytest
import torch

from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import UserError
from clip_vl.models.distill.beit import BeitSpec

ROWS = 16
SMALL = ["--random_init", "--image_blocks", "2", "--text_layers", "1", "--width", "48", "--heads", "4", "--patch", "8",
         "--image_resolution", "32", "--batch_size", "4", "--bank_size", "10", "--report_step", "1", "--lr", "1e-3",
         "--no-bf16", "--epochs", "2"]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory, caption_folder):
    return caption_folder(tmp_path_factory.mktemp("distill"))


@pytest.fixture(autouse=True)
def small_teacher(monkeypatch):
    small = BeitSpec(blocks=1, width=24, heads=4, hidden=48, patch=8, resolution=32)
    monkeypatch.setattr("clip_vl.models.distill.teachers.BeitSpec", lambda resolution: small)


def run(programs, folder, name, *more):
    given = ["--train_data", folder / "pairs.csv", "--valid_data", folder / "pairs.csv", "--bert", folder,
             "--datasets_dir", folder, "--output", folder / name]  # fmt: skip
    programs.run_here("distill", *given, *SMALL, *more)
    return [json.loads(line) for line in programs.log_rows(folder / name)]


def test_a_run_leaves_its_files_and_resumes_to_the_same_bits_with_its_bank(programs, folder):
    rows = run(programs, folder, "whole", "--checkpoint_steps", "3")
    names = {path.name for path in (folder / "whole").iterdir()}
    assert {"args.json", "epoch_1.pt", "epoch_2.pt", "best.pt", "result.json", "report.html"} <= names
    logged = {"kd_text_loss", "kd_image_loss", "kd_loss", "kd_text_acc", "kd_image_acc", "kd_acc", "itc_loss", "loss",
              "x_interm_itc_text_acc", "x_interm_itc_image_acc", "x_itc_acc"}  # fmt: skip
    assert logged <= rows[0].keys()
    assert rows[0]["loss"] == pytest.approx(rows[0]["kd_loss"] + rows[0]["itc_loss"], rel=1e-5)
    _, tensors, _ = load_latest(folder / "whole" / "checkpoints")
    assert int(tensors["bank"]["bank.place"]) == 2 * ROWS % 10 and (tensors["bank"]["image_ids.features"] >= 0).all()
    run(programs, folder, "broken", "--max_steps", "8", "--epochs", "2", "--dry_run")
    assert not (folder / "broken" / "checkpoints").exists()


def test_an_interrupted_run_continues_to_the_same_bits(programs, folder):
    from clip_vl.engine import run as engine_run

    run(programs, folder, "one", "--checkpoint_steps", "3")
    watched, count = engine_run.Run._save_if_due, []

    def stop_at_fifth(self):
        count.append(1)
        watched(self)
        if len(count) == 3:
            raise KeyboardInterrupt

    engine_run.Run._save_if_due = stop_at_fifth
    try:
        with pytest.raises(KeyboardInterrupt):
            run(programs, folder, "two", "--checkpoint_steps", "3")
    finally:
        engine_run.Run._save_if_due = watched
    run(programs, folder, "two", "--checkpoint_steps", "3", "--resume")
    programs.same_run(folder / "one", folder / "two")
    banks = [load_latest(folder / name / "checkpoints")[1]["bank"] for name in ("one", "two")]
    assert all(torch.equal(banks[0][name], banks[1][name]) for name in banks[0])


@pytest.mark.parametrize("more", [
    ("--kd", "batch", "--teacher_view", "independent"), ("--kd", "mse", "--token_types", "before"),
    ("--bank_init", "random", "--bank_candidates", "local", "--no-mask_same_image"),
    ("--kd", "none", "--teacher", "none", "--itc_layers", "final"),
    ("--learn_kd_temp", "--init", "normal", "--no-shared_layerscale", "--token_types", "off", "--no-hflip"),
])  # fmt: skip
def test_every_published_variant_trains(programs, folder, more):
    rows = run(programs, folder, "-".join(more).replace("-", ""), *more, "--epochs", "1")
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)
    assert ("kd_loss" in rows[0]) == ("none" not in more)


def test_the_loss_falls_on_four_colours(programs, folder):
    rows = run(programs, folder, "long", "--epochs", "12")
    losses = [row["itc_loss"] for row in rows if "itc_loss" in row]
    assert np.mean(losses[-4:]) < 0.8 * np.mean(losses[:4])


def test_a_checkpoint_is_the_start_of_a_retrieval_fine_tuning(programs, folder):
    run(programs, folder, "start", "--epochs", "1")
    more = ["--load", folder / "start" / "epoch_1.pt", "--kd", "none", "--teacher", "none", "--itc_layers", "final"]
    rows = run(programs, folder, "tuned", *more, "--lr", "0", "--epochs", "1")
    before = [json.loads(line) for line in programs.log_rows(folder / "start")][-1]
    after = rows[-1]
    assert after["valid_mean_recall"] == before["valid_mean_recall"]  # the learning rate is 0
    state = torch.load(folder / "start" / "epoch_1.pt", weights_only=True)["state_dict"]
    assert "model.shared.ls1.gamma" in state and "logit_scale_target" in state


def test_a_teacher_without_distillation_is_refused(programs, folder):
    with pytest.raises(UserError, match="belong together"):
        run(programs, folder, "refused", "--kd", "none")
