"""The protocol of a training run: positions, stops, dry runs, what is kept."""

import errno
import json
import os
import signal

import numpy as np
import pytest
import torch
from torch import nn

from clip_vl.engine import signals
from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import Finished, Interrupted, ProgramError, UserError
from clip_vl.engine.files import unwritten
from clip_vl.engine.optim import StepSettings
from clip_vl.engine.run import RunSettings, open_run

CPU, ROWS = torch.device("cpu"), np.arange(14).reshape(7, 2)


@pytest.fixture(autouse=True)
def handlers():
    """The handlers as they were: a run's own would stay for the tests that follow."""
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    yield
    signals.finish()
    for number, handler in zip(signals.SIGNALS, before):
        signal.signal(number, handler)


def load(epoch, rows):
    for part in rows:
        x = torch.randn(2, 3, generator=torch.Generator().manual_seed(100 * epoch + int(part[0])))
        yield {"rows": torch.from_numpy(part), "x": x}


def started(folder, accumulate=2, epochs=2, data=None, **settings):
    """(run, updater) of a model with dropout and batch statistics."""
    run = open_run("test", RunSettings(str(folder), seed=3, report_step=2, **settings), CPU, lambda path: path / "page")
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizers = {"adam": (torch.optim.AdamW(model.parameters(), lr=0.01), lambda update: 1 / (1 + update))}
    steps = StepSettings(2, epochs, accumulate=accumulate)
    run.watch_data(**(data or {}))
    return run, run.start(model, optimizers, steps, batches=len(ROWS))


def close(run):
    """What the end of the process would do: let go of the folder and of the signals."""
    run.files._lock.close()
    signals.finish()


def train(run, updater, each=lambda epoch, batch: None, most=None):
    """Whole epochs; `each` is called within each micro-batch. Returns (epoch, batch, is_last) of each."""
    seen = []
    for epoch in run.epochs():
        for batch in run.batches(ROWS, load, most):
            each(epoch, run.batch)
            with updater.forward():
                loss = updater.model(batch["x"]).square().mean()
            seen.append((epoch, run.batch, updater(loss, {"loss": loss})))
        run.save()
        run.log(epoch, valid_score=float(epoch))
        run.keep({"score": float(-epoch)}, "score")
    close(run)
    return seen


def rows_of(folder):
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("stop_at", [(0, 2), (0, 3), (1, 5), (1, 6)])
def test_a_run_that_a_signal_stops_goes_on_to_the_same_bits(tmp_path, stop_at):
    def signal_at(epoch, batch):
        if (epoch, batch) == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    run, whole = started(tmp_path / "whole")
    seen = train(run, whole)
    assert [is_last for *_, is_last in seen[:7]] == [False, True, False, True, False, True, True]
    run, updater = started(tmp_path / "broken")
    with pytest.raises(Interrupted, match="saved; add --resume"):
        train(run, updater, signal_at)
    close(run)
    epoch, batch = stop_at
    update = min(batch // 2 * 2 + 2, 7)  # the last micro-batch of the update in which the signal came
    position = load_latest(tmp_path / "broken/checkpoints")[2]["position"]
    assert (position["epoch"], position["batch"]) == (epoch, update)
    run, updater = started(tmp_path / "broken", resume=True)
    assert train(run, updater) == seen[7 * epoch + update :]
    weights = zip(whole.model.state_dict().values(), updater.model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in weights) and updater.state() == whole.state()
    assert rows_of(tmp_path / "whole") == rows_of(tmp_path / "broken")
    assert run.best == {"score": 0.0, "epoch": 1}  # the second epoch's was lower


def test_checkpoints_stand_where_they_are_due_and_what_is_left_of_an_epoch_makes_an_update(tmp_path):
    run, updater = started(tmp_path / "run", accumulate=2, epochs=1, checkpoint_steps=2, keep_last=9)
    train(run, updater, most=5)
    assert [path.name[-1] for path in sorted((tmp_path / "run/checkpoints").glob("step_*"))] == ["4", "5"]
    assert (updater.update, updater.micro_step) == (3, 5)


def test_a_dry_run_makes_the_first_update_twice_says_what_all_need_and_writes_nothing(tmp_path, capsys):
    run, updater = started(tmp_path / "run", epochs=5, dry_run=True)
    seen = []
    with pytest.raises(Finished):
        for _ in run.epochs():
            for batch in run.batches(ROWS, load, most=0):
                with updater.forward():
                    loss = updater.model(batch["x"]).square().mean()
                updater(loss, {"loss": loss})
                seen.append(batch["rows"].tolist())
    assert seen == 2 * ROWS[:2].tolist() and updater.update == 2
    first, memory, duration = capsys.readouterr().out.splitlines()
    assert first == "dry run: two updates trained on cpu, nothing saved" and "loader worker" in memory
    assert "20 updates" in duration and not (tmp_path / "run").exists()  # 5 epochs of 7 micro-batches, two an update


def test_without_a_score_the_latest_report_is_kept_and_the_gallery_may_fail(tmp_path, capsys):
    run, _ = started(tmp_path / "run")
    assert run.keep({"score": 2.0}) and run.keep({"score": 1.0}, gallery=lambda: {"cards": []})
    assert run.best == {"score": 1.0, "epoch": 1}
    assert json.loads((tmp_path / "run/gallery.json").read_text()) == {"cards": []}

    def full():
        raise OSError(28, "No space left on device")

    assert run.keep({"score": 3.0}, "score", full) and not run.keep({"score": 3.0}, "score", full)
    assert capsys.readouterr().out.count("no gallery.json: No space left on device") == 1


def test_a_signal_in_the_validation_ends_the_run_at_once(tmp_path):
    run, updater = started(tmp_path / "run")
    for batch in run.batches(ROWS, load):
        updater(updater.model(batch["x"]).sum())
    run.save()
    with pytest.raises(Interrupted, match="interrupted at update 4 and saved"):
        os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_without_room_for_a_checkpoint_is_an_error_that_says_so(tmp_path, monkeypatch, capsys):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    run, updater = started(tmp_path / "run")
    monkeypatch.setattr("clip_vl.engine.resume.save_checkpoint", full)
    with pytest.raises(ProgramError, match="interrupted at update 2, which could not be saved"):
        for batch in run.batches(ROWS, load):
            os.kill(os.getpid(), signal.SIGTERM) if run.batch == 3 else None
            updater(updater.model(batch["x"]).sum())
    assert "no checkpoint at update 2: No space left on device" in capsys.readouterr().out


def test_weights_of_an_epoch_that_could_not_be_written_are_not_passed_by(tmp_path, monkeypatch):
    """The checkpoint from before the epoch's weights stays the newest, so that --resume writes them."""
    run, updater = started(tmp_path / "run", epochs=2)
    for _ in run.epochs():
        for batch in run.batches(ROWS, load):
            updater(updater.model(batch["x"]).sum())
        run.save()
        monkeypatch.setitem(unwritten, str(tmp_path / "LAST.pth"), "No space left on device")
        if run.epoch == 0:
            epochs = load_latest(run.files.checkpoints)[2]["position"]
    assert epochs["epoch"] == 0 and epochs["batch"] == len(ROWS)
    newest = load_latest(run.files.checkpoints)[2]["position"]
    assert (newest["epoch"], newest["batch"]) == (1, len(ROWS))


def test_a_run_is_not_resumed_on_other_data(tmp_path):
    files = {"--train": {"a.json": "1", "b.json": "2"}, "--valid": None}
    run, updater = started(tmp_path / "run", epochs=1, data=files)
    assert run.data == {"--train a.json": "1", "--train b.json": "2"}
    train(run, updater)
    changed = {"--train": {"a.json": "1", "b.json": "3"}}
    run = open_run("test", RunSettings(str(tmp_path / "run"), seed=3, resume=True), CPU, str)
    close(run)
    with pytest.raises(UserError, match=r"data changed since the run was started: --train b\.json"):
        started(tmp_path / "run", epochs=1, data=changed, resume=True)


def test_the_report_in_a_checkpoint_of_an_older_pretraining_is_found(tmp_path):
    run, updater = started(tmp_path / "run", epochs=1)
    train(run, updater)
    (path,) = (tmp_path / "run/checkpoints").glob("step_*")
    state = json.loads((path / "state.json").read_text())
    state["position"]["result"] = state["position"].pop("best")
    (path / "state.json").write_text(json.dumps(state, indent=1))
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"].pop("state.json")
    from clip_vl.engine import checkpoint

    data = (path / "state.json").read_bytes()
    digest = checkpoint.hashlib.sha256(data).hexdigest()
    manifest["files"]["state.json"] = {"size": len(data), "sha256": digest}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    run, _ = started(tmp_path / "run", epochs=1, resume=True)
    assert run.best == {"score": 0.0, "epoch": 1}
