"""Saving and restoring a training: exact continuation, and refusal of what is not the same run."""

import pytest
import torch
from torch import nn

from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.meters import Meters
from clip_vl.engine.optim import Updater
from clip_vl.engine.resume import Moment, restore_training, save_training
from clip_vl.engine.run_folder import RunFolder
from clip_vl.models.loading.settings import read_settings

CPU = torch.device("cpu")


def training(folder, resume=False):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    updater = Updater(model, {"adam": (optimizer, lambda update: 1 / (1 + update))}, device=CPU, seed=3)
    return updater, Meters(CPU), RunFolder(folder, {}, "test", resume=resume)


def train(updater, meters, updates):
    for _ in range(updates):
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(updater.update))
        with updater.forward():
            loss = updater.model(x).pow(2).mean()
        updater(loss)
        meters.add("loss", loss)


def save(updater, meters, files, position, flags, data=None, **more):
    return save_training(files, updater, meters, {}, position, flags=flags, keep_last=2, data=data or {}, **more)


def restore(updater, meters, files, flags, data=None, **more):
    return restore_training(files, updater, meters, {}, flags=flags, data=data or {}, **more)


def test_a_restored_training_continues_to_the_same_bits(tmp_path):
    flags = {"keep_last": 2, "lr": 0.01}
    whole, meters, _ = training(tmp_path / "whole")
    train(whole, meters, 6)
    updater, other_meters, files = training(tmp_path / "run")
    train(updater, other_meters, 3)
    save(updater, other_meters, files, {"epoch": 1, "batch": 2}, flags)
    updater, other_meters, files = training(tmp_path / "run", resume=True)
    assert restore(updater, other_meters, files, flags) == {"epoch": 1, "batch": 2}
    train(updater, other_meters, 3)
    weights = zip(whole.model.state_dict().values(), updater.model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in weights)
    assert other_meters.state() == meters.state()


def test_the_weights_of_a_checkpoint_hold_the_settings_wherever_they_are_moved(tmp_path):
    updater, meters, files = training(tmp_path / "run")
    for step, settings in enumerate([None, {"pixels": {"resolution": 40}}], 1):
        train(updater, meters, 1)
        save(updater, meters, files, {}, {"lr": 0.01}, settings=settings)
        moved = (files.checkpoints / f"step_{step:08d}" / "model.safetensors").rename(tmp_path / f"{step}.safetensors")
        assert read_settings(moved) == (settings or {"lr": 0.01}, str(moved), True)


def test_what_is_saved_in_the_middle_of_an_update_is_the_state_after_the_last_one(tmp_path):
    """A stuck program is saved by another thread: half an update's counters, sums and BatchNorm must not show."""
    flags = {"lr": 0.01}
    whole, meters, _ = training(tmp_path / "whole")
    train(whole, meters, 6)
    updater, other_meters, files = training(tmp_path / "run")
    train(updater, other_meters, 3)
    files.log(step=3)
    moment = Moment.now(files, updater, other_meters)
    updater.begin(is_last=False, accumulate=2)
    with updater.forward():
        loss = updater.model(torch.ones(8, 3)).sum()
    updater.backward(loss)
    other_meters.add("loss", loss)
    files.log(step=4)
    assert save(updater, other_meters, files, {"epoch": 1, "batch": 2}, flags, moment=moment)
    updater, other_meters, files = training(tmp_path / "run", resume=True)
    assert restore(updater, other_meters, files, flags) == {"epoch": 1, "batch": 2}
    assert (tmp_path / "run" / "log.jsonl").read_text() == '{"step": 3}\n'
    train(updater, other_meters, 3)
    pairs = zip(whole.model.state_dict().values(), updater.model.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs if a.is_floating_point())  # but BatchNorm's count of batches
    assert other_meters.state() == meters.state()


def test_changed_data_are_refused_by_name_unless_a_flag_allows_them(tmp_path):
    updater, meters, files = training(tmp_path / "run")
    save(updater, meters, files, {"epoch": 0}, {}, {"--train a.json": "1", "--valid": "2"})
    restore(updater, meters, files, {}, {"--train a.json": "1", "--valid": "2"})
    with pytest.raises(UserError, match=r"data changed since the run was started: --train a\.json; .*allow_changed"):
        restore(updater, meters, files, {}, {"--train a.json": "3", "--valid": "2"})
    restore(updater, meters, files, {}, {"--train a.json": "3", "--valid": "2"}, allow_changed_data=True)


def test_other_flags_are_refused_and_free_ones_are_not(tmp_path):
    updater, meters, files = training(tmp_path / "run")
    save(updater, meters, files, {"epoch": 0, "batch": 0}, {"keep_last": 2, "lr": 0.01})
    restore(updater, meters, files, {"keep_last": 5, "lr": 0.01})
    with pytest.raises(UserError, match=r"lr: 0\.01 -> 0\.1"):
        restore(updater, meters, files, {"keep_last": 2, "lr": 0.1})


def test_another_number_of_processes_is_refused(tmp_path, monkeypatch):
    updater, meters, files = training(tmp_path / "run")
    save(updater, meters, files, {"epoch": 0, "batch": 0}, {"keep_last": 2})
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="started with 1 processes and is resumed with 2"):
        restore(updater, meters, files, {"keep_last": 2})


@pytest.mark.parametrize("state", [[], {}, {"position": []}, {"meters": []}, {"world_size": "1"}, {"log_position": -1}])
def test_a_whole_checkpoint_of_another_form_is_refused_in_one_sentence(tmp_path, monkeypatch, state):
    updater, meters, files = training(tmp_path / "run")
    save(updater, meters, files, {"epoch": 0, "batch": 0}, {"lr": 0.01})
    path, tensors, whole = load_latest(files.checkpoints)
    state = whole | state if state else state
    monkeypatch.setattr("clip_vl.engine.resume.load_latest", lambda *_, **__: (path, tensors, state))
    with pytest.raises(DataError, match="is not a checkpoint of this program"):
        restore(updater, meters, files, {"lr": 0.01})
