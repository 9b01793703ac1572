"""Pre-training as a user runs it: files, stages, exact resume, signals, many processes with one, and bad input."""

import json
import os
import signal
import subprocess

import pytest
import torch

from clip_vl.engine.checkpoint import load_latest
from clip_vl.models.loading.state_dicts import read_state_dict


def flags(programs, shapes_root, output, *more):
    return [*programs.PRETRAIN, *programs.TINY, "--data_root", str(shapes_root), "--output", str(output), *more]


def without_clocks(folder, programs):
    rows = [json.loads(line) for line in programs.log_rows(folder)]
    return [{k: v for k, v in row.items() if not k.startswith("seconds")} for row in rows]


def same_run(a, b, programs):
    """Weights, optimizers and log of two runs are identical to the last bit."""
    (_, tensors_a, state_a), (_, tensors_b, state_b) = load_latest(a / "checkpoints"), load_latest(b / "checkpoints")
    for stem, flat in tensors_a.items():
        assert all(torch.equal(flat[name], tensors_b[stem][name]) for name in flat), stem
    assert state_a["updater"] == state_b["updater"]
    assert without_clocks(a, programs) == without_clocks(b, programs)


@pytest.fixture(scope="module")
def stage_one(programs, shapes_root, tmp_path_factory):
    """A finished run of two epochs, the one that every interrupted run is compared with."""
    output = tmp_path_factory.mktemp("pretrain") / "stage_one"
    programs.run("pretrain", *flags(programs, shapes_root, output, "--epochs", "2", "--checkpoint_steps", "3"))
    return output


def test_a_run_leaves_its_files(stage_one):
    names = {path.name for path in stage_one.iterdir()}
    assert {"args.json", "log.jsonl", "result.json", "report.html", "Epoch01_LXRT.pth", "Epoch02_LXRT.pth",
            "Epoch02_LXRT_AdamOptim.pth", "Epoch02_LXRT_Scheduler.pth"} <= names  # fmt: skip
    result = json.loads((stage_one / "result.json").read_text())
    assert result["task"] == "pretrain" and 0 <= result["matched_accuracy"] <= 100
    assert not list(stage_one.rglob(".tmp-*"))


def test_published_checkpoints_are_plain_and_hold_no_dead_weights(stage_one):
    state = torch.load(stage_one / "Epoch02_LXRT.pth", weights_only=True)
    assert all(name.startswith("module.") for name in state)
    assert "module.cls.predictions.decoder.weight" in state
    assert not any("attnpool" in name or "text_projection" in name for name in state)


def test_stage_two_takes_over_the_weights_and_adds_the_answer_head(programs, shapes_root, stage_one, tmp_path):
    more = ["--taskQA", "--load", str(stage_one / "Epoch02"), "--not_load_scheduler", "--not_load_adam_optimizer"]
    more += ["--epochs", "1", "--lr", "0"]  # nothing learns: what is saved is what was loaded
    programs.run("pretrain", *flags(programs, shapes_root, tmp_path / "two", *more))
    before, after = (read_state_dict(p) for p in (stage_one / "Epoch02_LXRT.pth", tmp_path / "two/Epoch01_LXRT.pth"))
    weight = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(before[weight], after[weight]) and "answer_head.logit_fc.3.weight" in after
    assert "qa_accuracy" in json.loads((tmp_path / "two/result.json").read_text())


def test_lxmerts_optimizer_resumes_to_the_same_bits_and_is_handed_on(programs, shapes_root, tmp_path):
    short = ["--optim", "bert", "--apex", "--epochs", "2", "--max_train_samples", "32", "--valid", ""]
    run = flags(programs, shapes_root, "", *short)
    for name, more in (("whole", []), ("parts", ["--stop_after_epoch", "1"]), ("parts", ["--resume"])):
        done = programs.run("pretrain", *run, "--output", str(tmp_path / name), *more)
    assert "--apex: apex's kernels are for GPUs" in done.stdout
    same_run(tmp_path / "whole", tmp_path / "parts", programs)
    more = ["--load", str(tmp_path / "whole/Epoch01"), "--start_epoch", "1"]
    programs.run("pretrain", *run, "--output", str(tmp_path / "on"), *more)
    files = [tmp_path / name / "Epoch02_LXRT_AdamOptim.pth" for name in ("whole", "on")]
    whole, on = (torch.load(path, weights_only=True) for path in files)
    assert whole["param_groups"] == on["param_groups"] and whole["param_groups"][0]["correct_bias"] is False
    counts = [{index: entry["step"] for index, entry in state["state"].items()} for state in (whole, on)]
    assert counts[0] == counts[1] and max(counts[0].values()) > 4  # it went on from the first epoch's


def test_a_run_with_a_killed_rank_starts_again_and_loses_no_step(programs, shapes_root, tmp_path):
    run = flags(programs, shapes_root, tmp_path / "run", "--epochs", "2", "--checkpoint_steps", "2", "--resume")
    launcher = programs.launch("pretrain", *run, "--report_step", "1", restarts=1)
    programs.wait_for_rows(tmp_path / "run", 3, launcher)
    children = ["pgrep", "-P", str(launcher.pid)]
    for _ in range(2):  # the launcher's child is torchrun, torchrun's are the ranks
        found = subprocess.run(children, capture_output=True, text=True).stdout.split()
        children = ["pgrep", "-P", ",".join(found)]
    os.kill(int(found[0]), signal.SIGKILL)
    said = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 0 and "restart 1 of 1" in said
    steps = [row["step"] for row in map(json.loads, programs.log_rows(tmp_path / "run")) if "loss" in row]
    assert steps == list(range(len(steps))) and len(steps) > 4


def test_restarts_without_resume_are_refused(programs, tmp_path):
    process = programs.launch("pretrain", "--output", tmp_path / "run", restarts=1)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 2 and "needs --resume" in said


def test_two_streams_train_on_two_processes_and_go_on_from_their_shapes(programs, shapes_root, tmp_path):
    two = ["--no-visualbert_style", "--xlayers", "2", "--rlayers", "1", "--epochs", "1"]
    programs.run("pretrain", *flags(programs, shapes_root, tmp_path / "a", *two), nproc=2)
    state = read_state_dict(tmp_path / "a/Epoch01_LXRT.pth")
    assert "bert.encoder.x_layers.1.visual_attention.att.query.weight" in state
    more = ["--load", str(tmp_path / "a/Epoch01"), "--not_load_scheduler", "--not_load_adam_optimizer", "--epochs", "1"]
    done = programs.run("pretrain", *flags(programs, shapes_root, tmp_path / "b", *more))  # asks for one stream
    assert "'cross_layers': 2" in done.stdout and "matched_accuracy" in (tmp_path / "b/result.json").read_text()


@pytest.mark.parametrize("rows", [1, 4])
def test_a_killed_run_resumes_to_the_same_bits(programs, shapes_root, stage_one, tmp_path, rows):
    run = flags(programs, shapes_root, tmp_path / "run", "--epochs", "2", "--checkpoint_steps", "3", "--resume")
    code, _ = programs.interrupt("pretrain", *run, number=signal.SIGKILL, after=rows)
    assert code == -signal.SIGKILL
    programs.run("pretrain", *run, "--num_workers", "2")  # another number of workers changes nothing
    same_run(stage_one, tmp_path / "run", programs)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_a_signal_saves_and_exits_with_75(programs, shapes_root, stage_one, tmp_path, number):
    run = flags(programs, shapes_root, tmp_path / "run", "--epochs", "2", "--checkpoint_steps", "1000")
    code, text = programs.interrupt("pretrain", *run, number=number, after=1)
    assert code == 75, text
    assert "interrupted at update" in text and "Traceback" not in text
    programs.run("pretrain", *run, "--resume", "--checkpoint_steps", "3")
    same_run(stage_one, tmp_path / "run", programs)
