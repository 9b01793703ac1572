"""Checkpoints are whole or absent, damage is found, and what is restored goes on bit for bit."""

import errno
import itertools
import json
import os
import resource

import pytest
import torch

from clip_vl.engine import checkpoint, files
from clip_vl.engine.checkpoint import (
    flatten_optimizer,
    load_latest,
    read_checkpoint,
    restore_optimizer,
    save_checkpoint,
)
from clip_vl.engine.errors import DataError
from clip_vl.engine.optimizers import build_optimizer


def tensors_of(step):
    return {"model": {"weight": torch.full((4, 5), float(step))}, "optim": {"0.exp_avg": torch.full((7,), float(step))}}


def save(folder, *steps, **kwargs):
    for step in steps:
        save_checkpoint(folder, step, tensors_of(step), {"step": step}, **kwargs)


def loaded_step(folder):
    """The step of the checkpoint that loads, after checking that all its parts agree; with what was said."""
    said = []
    path, tensors, state = load_latest(folder, say=said.append)
    step = state["step"]
    assert path.name == f"step_{step:08d}"
    assert torch.equal(tensors["model"]["weight"], tensors_of(step)["model"]["weight"])
    assert torch.equal(tensors["optim"]["0.exp_avg"], tensors_of(step)["optim"]["0.exp_avg"])
    return step, said


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ---- what comes back


def test_every_type_and_shape_comes_back_bit_for_bit(tmp_path):
    flat = {str(dtype): torch.randn(3, 5).to(dtype) for dtype in checkpoint.SAFETENSORS_DTYPES}
    flat |= {"scalar": torch.tensor(3.0), "empty": torch.empty(0, 4), "ü": torch.tensor([float("nan"), -0.0])}
    flat |= {"transposed": torch.randn(4, 6).T, "images": torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)}
    state = {"lr": 0.1 + 0.2, "list": [1, None, "é"], "scaler": {"scale": 65536.0}}
    save_checkpoint(tmp_path, 3, {"model": flat}, state)
    _, tensors, loaded_state = load_latest(tmp_path)
    assert loaded_state == state
    assert tensors["model"].keys() == flat.keys()
    for name, tensor in tensors["model"].items():
        assert (tensor.dtype, tensor.shape) == (flat[name].dtype, flat[name].shape)
        assert bytes(checkpoint._raw_bytes(tensor)) == bytes(checkpoint._raw_bytes(flat[name])), name


def test_nothing_saved_yet_is_none(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "absent") is None


def test_the_newest_is_loaded_and_older_ones_are_pruned(tmp_path):
    save(tmp_path, 1, 2, 30, keep_last=2)
    assert names(tmp_path) == ["LATEST", "step_00000002", "step_00000030"]
    assert (tmp_path / "LATEST").read_text() == "step_00000030\n"
    assert loaded_step(tmp_path) == (30, [])


def test_the_same_step_can_be_saved_again(tmp_path):
    save(tmp_path, 5)
    save_checkpoint(tmp_path, 5, tensors_of(5), {"step": 5, "second": True})
    assert names(tmp_path) == ["LATEST", "step_00000005"]
    assert load_latest(tmp_path)[2]["second"]


def test_a_kill_between_the_two_renames_of_a_replacement_loses_nothing(tmp_path):
    save(tmp_path, 4, 5)
    (tmp_path / "step_00000005").rename(tmp_path / "step_00000005.old")
    path, _, state = load_latest(tmp_path, say=lambda line: None)
    assert (path.name, state["step"]) == ("step_00000005.old", 5)
    save(tmp_path, 5)
    assert names(tmp_path) == ["LATEST", "step_00000004", "step_00000005"]


def test_steps_of_an_abandoned_future_go_when_an_earlier_one_is_saved(tmp_path):
    """A run that fell back from a damaged step 9 to 5 must not meet step 9 again, nor count it among the last K."""
    save(tmp_path, 5, 9)
    save(tmp_path, 7, keep_last=2)
    assert names(tmp_path) == ["LATEST", "step_00000005", "step_00000007"]


# ---- damage


@pytest.mark.parametrize("name", ["MANIFEST.json", "state.json", "model.safetensors", "optim.safetensors"])
def test_a_missing_file_is_found_and_the_one_before_is_used(tmp_path, name):
    save(tmp_path, 1, 2)
    (tmp_path / "step_00000002" / name).unlink()
    step, said = loaded_step(tmp_path)
    assert step == 1 and len(said) == 1 and "step_00000002" in said[0] and "\n" not in said[0]


def test_all_damaged_is_one_error_and_never_a_silent_fresh_start(tmp_path):
    save(tmp_path, 1)
    (tmp_path / "step_00000001" / "state.json").write_text("{}")
    with pytest.raises(DataError, match=r"no checkpoint can be used"):
        load_latest(tmp_path, say=lambda line: None)


@pytest.mark.parametrize("latest", [None, "", "step_00000077", "../../etc/passwd", "\xff\x00" * 500])
def test_latest_may_be_missing_or_name_nothing(tmp_path, latest):
    save(tmp_path, 1, 2)
    (tmp_path / "LATEST").unlink()
    if latest is not None:
        (tmp_path / "LATEST").write_text(latest)
    step, said = loaded_step(tmp_path)
    assert step == 2
    assert len(said) == (latest is not None)


def test_latest_without_any_checkpoint_is_an_error(tmp_path):
    (tmp_path / "LATEST").write_text("step_00000001\n")
    with pytest.raises(DataError, match="no checkpoint can be used"):
        load_latest(tmp_path, say=lambda line: None)


@pytest.mark.parametrize("name", ["../secret.json", "/etc/passwd", "a/b.json", ".hidden.json", "x\n.json", "a.json/"])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    save(tmp_path, 1)
    path = tmp_path / "step_00000001"
    (tmp_path / "secret.json").write_text("{}")
    manifest = json.loads((path / "MANIFEST.json").read_text())
    manifest["files"][name] = {"size": 2, "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"}
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not a plain file name"):
        read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[" * 100_000, b'{"format": 2, "files": {}}'])
def test_a_manifest_of_another_form_is_damage(tmp_path, content):
    save(tmp_path, 1)
    (tmp_path / "step_00000001" / "MANIFEST.json").write_bytes(content)
    with pytest.raises(DataError, match="MANIFEST"):
        read_checkpoint(tmp_path / "step_00000001")


def test_a_hostile_tensor_file_under_a_valid_manifest_is_damage(tmp_path):
    """A header that claims 2**62 bytes must neither allocate nor crash."""
    save(tmp_path, 1)
    path = tmp_path / "step_00000001"
    manifest = json.loads((path / "MANIFEST.json").read_text())
    (path / "model.safetensors").unlink()
    entry = checkpoint._write(path / "model.safetensors", [(1 << 62).to_bytes(8, "little"), b"{}"])
    manifest["files"]["model.safetensors"] = entry
    (path / "MANIFEST.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="not a whole safetensors file"):
        read_checkpoint(path)


# ---- writers that die


def test_a_living_writers_folder_is_not_swept(tmp_path):
    temporary = tmp_path / f"{files.TEMPORARY}1234-step_00000009"
    temporary.mkdir()
    with checkpoint._locked(temporary):
        save(tmp_path, 1)
        assert temporary.exists()
    save(tmp_path, 2)
    assert not temporary.exists()


# ---- disks that are full


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("moment", range(12))
def test_a_full_disk_at_any_write_leaves_the_old_one_whole_and_no_rest(tmp_path, monkeypatch, moment):
    save(tmp_path, 1)
    calls = itertools.count()
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: no_space() if next(calls) == moment else fsync(handle))
    try:
        save(tmp_path, 2)
    except OSError as error:
        assert error.errno == errno.ENOSPC
    assert not [name for name in names(tmp_path) if name.startswith(files.TEMPORARY)]
    monkeypatch.undo()
    step, _ = loaded_step(tmp_path)
    assert step in (1, 2)
    assert (tmp_path / "step_00000001").exists()
    save(tmp_path, 3)
    assert loaded_step(tmp_path) == (3, [])


def with_file_limit(action):
    """Run `action` in a fork whose files may not grow past 20,000 bytes; returns its OSError's number, or None."""
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            action()
            os._exit(0)
        except OSError as error:
            os._exit(error.errno)
        finally:
            os._exit(255)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_write_that_the_kernel_stops_is_an_oserror_and_leaves_no_rest(tmp_path):
    big = {"weight": torch.randn(100, 100)}
    save(tmp_path / "checkpoints", 1)
    assert with_file_limit(lambda: save_checkpoint(tmp_path / "checkpoints", 2, {"model": big}, {})) == errno.EFBIG
    assert names(tmp_path / "checkpoints") == ["LATEST", "step_00000001"]


# ---- optimizers


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(36, 2)).to(
        memory_format=torch.channels_last
    )


def adamw(model, **kwargs):
    weights, biases = ([p for p in model.parameters() if (p.dim() > 1) == wide] for wide in (True, False))
    groups = [{"params": weights}, {"params": biases, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.98), eps=1e-6, **kwargs)


OPTIMIZERS = {
    "adamw": adamw,
    "adamw_foreach": lambda model: adamw(model, foreach=True),
    "adamw_fused": lambda model: adamw(model, fused=True),
    "bert": lambda model: build_optimizer("bert", model.parameters(), 0.01, 0.1),
    "hf_adamw": lambda model: build_optimizer("hf_adamw", model.parameters(), 0.01, 0.1),
    "adam": lambda model: build_optimizer("adam", model.parameters(), 0.01),
    "adamax": lambda model: build_optimizer("adamax", model.parameters(), 0.01),
    "rms": lambda model: build_optimizer("rms", model.parameters(), 0.01),
    "sgd": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, weight_decay=4e-4),
    "sgd_momentum": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
    "sgd_momentum_fused": lambda model: torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=True),
}


def train(model, optimizer, schedule, steps):
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(2, 3, 5, 5, generator=generator)).square().sum().backward()
        if step % 3 == 2:
            model[0].bias.grad = None  # a parameter that not every step reaches
        optimizer.step()
        schedule.step()


def schedule_of(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("done", [0, 1, 4])
def test_training_goes_on_bit_for_bit_after_a_restore(tmp_path, kind, done):
    straight = make_model()
    optimizer = OPTIMIZERS[kind](straight)
    schedule = schedule_of(optimizer)
    train(straight, optimizer, schedule, range(done))
    flat, meta = flatten_optimizer(optimizer)
    state = {"optim": meta, "schedule": schedule.last_epoch}
    save_checkpoint(tmp_path, done, {"model": straight.state_dict(), "optim": flat}, state)
    train(straight, optimizer, schedule, range(done, 9))

    _, tensors, state = load_latest(tmp_path)
    resumed = make_model()
    resumed.load_state_dict(tensors["model"])
    other = OPTIMIZERS[kind](resumed)
    schedule = schedule_of(other)
    restore_optimizer(other, tensors["optim"], state["optim"])
    schedule.last_epoch = state["schedule"]
    train(resumed, other, schedule, range(done, 9))

    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    (flat, meta), (other_flat, other_meta) = flatten_optimizer(optimizer), flatten_optimizer(other)
    assert meta == other_meta
    assert flat.keys() == other_flat.keys() and all(torch.equal(flat[name], other_flat[name]) for name in flat)
    assert all(flat[name].stride() == other_flat[name].stride() for name in flat)


def test_restored_moments_own_their_memory():
    """They must not be views of the checkpoint's file, which pruning deletes."""
    model = make_model()
    optimizer = adamw(model)
    train(model, optimizer, schedule_of(optimizer), range(2))
    flat, meta = flatten_optimizer(optimizer)
    loaded = {name: tensor.clone() for name, tensor in flat.items()}
    restore_optimizer(optimizer, loaded, meta)
    train(model, optimizer, schedule_of(optimizer), range(2))
    assert all(torch.equal(loaded[name], flat[name]) for name in flat)


def test_an_optimizer_over_other_parameters_is_refused():
    model = make_model()
    optimizer = adamw(model)
    train(model, optimizer, schedule_of(optimizer), range(1))
    flat, meta = flatten_optimizer(optimizer)
    with pytest.raises(DataError, match=r"groups of \[2, 2\] parameters, this run's has \[4\]"):
        restore_optimizer(torch.optim.AdamW(model.parameters()), flat, meta)
    groups = [{"params": group["params"]} for group in optimizer.param_groups]
    with pytest.raises(DataError, match=r"optimizer is AdamW, this run's is BertAdam"):
        restore_optimizer(build_optimizer("bert", groups, 0.01), flat, meta)
    with pytest.raises(DataError, match=r"Optimizer entry 0\.exp_avg is"):
        restore_optimizer(optimizer, flat | {"0.exp_avg": torch.zeros(3)}, meta)


@pytest.mark.parametrize("name", ["adafactor", "lamb"])
def test_an_optimizer_of_timms_goes_on_exactly(name):
    """Adafactor's moments are a row and a column of each matrix; LAMB counts its steps in a tensor of the group."""
    from timm.optim import create_optimizer_v2

    def step(layer, optimizer, number):
        layer(torch.randn(4, 32, generator=torch.Generator().manual_seed(number))).pow(2).sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    layers = [torch.nn.Linear(32, 32) for _ in range(2)]
    optimizers = [create_optimizer_v2(layer.parameters(), opt=name, lr=1e-2) for layer in layers]
    step(layers[0], optimizers[0], 0)
    layers[1].load_state_dict(layers[0].state_dict())
    flat, meta = flatten_optimizer(optimizers[0])
    copies = {name: value.clone() for name, value in flat.items()}
    restore_optimizer(optimizers[1], copies, json.loads(json.dumps(meta)))
    for layer, optimizer in zip(layers, optimizers):
        step(layer, optimizer, 1)
    assert torch.equal(layers[0].weight, layers[1].weight)
