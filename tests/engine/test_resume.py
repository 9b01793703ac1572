"""Saving and restoring a training: exact continuation, and refusal of what is not the same run."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.meters import Meters
from clip_vl.engine.optim import Updater
from clip_vl.engine.resume import Moment, restore_training, save_training
from clip_vl.engine.run import Run
from clip_vl.models.loading.settings import read_settings

CPU = torch.device("cpu")


def training(folder, resume=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    updater = Updater(model, {"adam": (optimizer, lambda update: 1 / (1 + update))}, device=CPU, seed=3)
    return model, updater, Meters(CPU), Run(folder, {}, "test", resume=resume)


def train(model, updater, meters, updates):
    for _ in range(updates):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(updater.update))
        with updater.micro_batch(True):
            loss = model(x).pow(2).mean()
            updater.backward(loss, 1)
        meters.add("loss", loss)
        updater.step()


def test_a_restored_training_continues_to_the_same_bits(tmp_path):
    args = SimpleNamespace(keep_last=2, lr=0.01)
    whole, updater, meters, _ = training(tmp_path / "whole")
    train(whole, updater, meters, 6)
    model, updater, other_meters, run = training(tmp_path / "run")
    train(model, updater, other_meters, 3)
    save_training(run, model, updater, other_meters, args, epoch=1, batch=2)
    model, updater, other_meters, run = training(tmp_path / "run", resume=True)
    assert restore_training(run, model, updater, other_meters, args) == {"epoch": 1, "batch": 2}
    train(model, updater, other_meters, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), model.state_dict().values()))
    assert other_meters.state() == meters.state()


def test_the_weights_of_a_checkpoint_hold_the_settings_wherever_they_are_moved(tmp_path):
    model, updater, meters, run = training(tmp_path / "run")
    args = SimpleNamespace(keep_last=None, lr=0.01)
    for step, settings in enumerate([None, {"pixels": {"resolution": 40}}], 1):
        train(model, updater, meters, 1)
        save_training(run, model, updater, meters, args, settings=settings)
        moved = (run.checkpoints / f"step_{step:08d}" / "model.safetensors").rename(tmp_path / f"{step}.safetensors")
        assert read_settings(moved) == (settings or {"lr": 0.01}, str(moved), True)


def test_what_is_saved_in_the_middle_of_an_update_is_the_state_after_the_last_one(tmp_path):
    """A stuck program is saved by another thread: half an update's counters, sums and BatchNorm must not show."""
    args = SimpleNamespace(keep_last=2, lr=0.01)
    whole, updater, meters, _ = training(tmp_path / "whole")
    train(whole, updater, meters, 6)
    model, updater, other_meters, run = training(tmp_path / "run")
    train(model, updater, other_meters, 3)
    run.log(step=3)
    moment = Moment.now(run, updater, other_meters)
    with updater.micro_batch(False):
        loss = model(torch.ones(8, 3)).sum()
        updater.backward(loss, 2)
    other_meters.add("loss", loss)
    run.log(step=4)
    assert save_training(run, model, updater, other_meters, args, moment=moment, epoch=1, batch=2)
    model, updater, other_meters, run = training(tmp_path / "run", resume=True)
    assert restore_training(run, model, updater, other_meters, args) == {"epoch": 1, "batch": 2}
    assert (tmp_path / "run" / "log.jsonl").read_text() == '{"step": 3}\n'
    train(model, updater, other_meters, 3)
    pairs = zip(whole.state_dict().values(), model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs if a.is_floating_point())  # but BatchNorm's count of batches
    assert other_meters.state() == meters.state()


def test_changed_data_are_refused_by_name_unless_a_flag_allows_them(tmp_path):
    model, updater, meters, run = training(tmp_path / "run")
    args = SimpleNamespace(keep_last=2, allow_changed_data=False)
    save_training(run, model, updater, meters, args, data={"--train a.json": "1", "--valid": "2"}, epoch=0)
    restore_training(run, model, updater, meters, args, data={"--train a.json": "1", "--valid": "2"})
    with pytest.raises(UserError, match=r"data changed since the run was started: --train a\.json; .*allow_changed"):
        restore_training(run, model, updater, meters, args, data={"--train a.json": "3", "--valid": "2"})
    args.allow_changed_data = True
    restore_training(run, model, updater, meters, args, data={"--train a.json": "3", "--valid": "2"})


def test_other_flags_are_refused_and_free_ones_are_not(tmp_path):
    model, updater, meters, run = training(tmp_path / "run")
    save_training(run, model, updater, meters, SimpleNamespace(keep_last=2, lr=0.01), epoch=0, batch=0)
    restore_training(run, model, updater, meters, SimpleNamespace(keep_last=5, lr=0.01))
    with pytest.raises(UserError, match=r"lr: 0\.01 -> 0\.1"):
        restore_training(run, model, updater, meters, SimpleNamespace(keep_last=2, lr=0.1))


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    model, updater, meters, run = training(tmp_path / "run")
    args = SimpleNamespace(keep_last=2)
    save_training(run, model, updater, meters, args, epoch=0, batch=0)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="started with 1 processes and is resumed with 2"):
        restore_training(run, model, updater, meters, args)


@pytest.mark.parametrize("state", [[], {}, {"position": []}, {"meters": []}, {"world_size": "1"}, {"log_position": -1}])
def test_a_whole_checkpoint_of_another_form_is_refused_in_one_sentence(tmp_path, monkeypatch, state):
    model, updater, meters, run = training(tmp_path / "run")
    args = SimpleNamespace(keep_last=2, lr=0.01)
    save_training(run, model, updater, meters, args, epoch=0, batch=0)
    path, tensors, whole = load_latest(run.checkpoints)
    state = whole | state if state else state
    monkeypatch.setattr("clip_vl.engine.resume.load_latest", lambda *_, **__: (path, tensors, state))
    with pytest.raises(DataError, match="is not a checkpoint of this program"):
        restore_training(run, model, updater, meters, args)
