"""Checkpoints that are atomic, verified on load, and exact.

    checkpoints/
      LATEST               the name of the newest checkpoint, for people and scripts
      step_00001234/
        model.safetensors  one file per entry of `tensors`
        optim.safetensors
        state.json         everything that is not a tensor: epoch, position, schedules, scaler
        MANIFEST.json      size and sha256 of every file above

A checkpoint is written under a temporary name, synced, then renamed, so that a folder named step_* is complete. The
digests find later damage, such as a flipped bit or a lost block: safetensors and PyTorch files have no checksums.
"""

import hashlib
import itertools
import json
import os
import re
import shutil
import struct
import zipfile
import zlib
from contextlib import contextmanager
from pathlib import Path

import torch

from clip_vl.engine.errors import DataError
from clip_vl.engine.files import (
    SETTINGS_KEY,
    TEMPORARY,
    atomic_file,
    atomic_write,
    sync_folder,
    temporary_name,
    try_lock,
    unwritten,
)
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.engine.readers.tensor_files import read_safetensors

FORMAT = 1
MANIFEST = "MANIFEST.json"
LATEST = "LATEST"
MODEL = "model"  # the stem of the file with the model's weights
SET_ASIDE = ".old"  # a checkpoint that another one of the same step replaces
STEP_NAME = re.compile(rf"step_(\d{{8,}})({re.escape(SET_ASIDE)})?")
FILE_NAME = re.compile(r"\w[\w-]*\.(safetensors|json)", re.ASCII)  # no path out of the folder
MAX_JSON_BYTES = 64 << 20
SAFETENSORS_DTYPES = {
    torch.float64: "F64", torch.int64: "I64", torch.float32: "F32", torch.int32: "I32", torch.bfloat16: "BF16",
    torch.float16: "F16", torch.int16: "I16", torch.uint8: "U8", torch.int8: "I8", torch.bool: "BOOL",
}  # fmt: skip


# ---- saving


def save_checkpoint(folder, step, tensors, state, keep_last=None, settings=None):
    """Save `folder`/step_XXXXXXXX atomically, write its name to LATEST, then prune.

    tensors:   {file stem: {name: tensor}}, on any device and in any memory format
    state:     dict of JSON values
    settings:  JSON values that the file of the model's weights holds as metadata
    keep_last: number of checkpoints to keep (None: all)
    returns:   the path of the checkpoint
    raises:    OSError when the disk is full or not writable; earlier checkpoints are kept
    """
    target = Path(folder) / f"step_{step:08d}"
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    temporary = temporary_name(target)
    try:
        temporary.mkdir()
        with _locked(temporary):
            _fill(temporary, tensors, state, settings)
            _publish(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    atomic_write(target.parent / LATEST, f"{target.name}\n".encode())
    _remove_abandoned(target)
    if keep_last is not None:
        prune(target.parent, keep_last)
    return target


def prune(folder, keep_last):
    """Delete all but the newest `keep_last` checkpoints."""
    for path in _newest_first(folder)[max(keep_last, 1) :]:
        _remove(path)


def _fill(folder, tensors, state, settings):
    metadata = {MODEL: {SETTINGS_KEY: json.dumps(settings)}} if settings else {}
    files = {f"{stem}.safetensors": _safetensors_chunks(flat, metadata.get(stem)) for stem, flat in tensors.items()}
    files["state.json"] = [json.dumps(state, indent=1).encode()]
    assert all(FILE_NAME.fullmatch(name) for name in files), f"{list(files)} must be plain file names"
    manifest = {"format": FORMAT, "files": {name: _write(folder / name, chunks) for name, chunks in files.items()}}
    _write(folder / MANIFEST, [json.dumps(manifest, indent=1).encode()])
    sync_folder(folder)


def _write(path, chunks):
    """Write and sync the chunks; the digest is of the chunks in memory, so that it also finds errors of the disk."""
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for chunk in chunks:
            file.write(chunk)
            digest.update(chunk)
            size += len(chunk)
        file.flush()
        os.fsync(file.fileno())
    return {"size": size, "sha256": digest.hexdigest()}


def _safetensors_chunks(tensors, metadata=None):
    """The bytes of a safetensors file, one tensor at a time, without a second copy of the model in memory.

    The format is header length (u64), header (JSON), data. Wide dtypes come first, so that every tensor is aligned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = {"__metadata__": metadata} if metadata else {}, 0
    for name in names:
        tensor = tensors[name]
        start, end = end, end + tensor.numel() * tensor.element_size()
        dtype = SAFETENSORS_DTYPES[tensor.dtype]
        header[name] = {"dtype": dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return itertools.chain([struct.pack("<Q", len(text)), text], (_raw_bytes(tensors[name]) for name in names))


def _raw_bytes(tensor):
    return memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())


def _publish(temporary, target):
    """Rename the finished checkpoint; one of the same step is renamed first, as a folder cannot replace another."""
    if target.exists():
        target.rename(_emptied(target.with_name(target.name + SET_ASIDE)))
    temporary.rename(target)
    sync_folder(target.parent)


def _emptied(path):
    _remove(path)
    return path


def _remove_abandoned(target):
    """Delete the replaced checkpoint of the same step, and later steps, which a run left that resumed before them."""
    for path in _newest_first(target.parent):
        if path == target:
            break
        _remove(path)
    _remove(target.with_name(target.name + SET_ASIDE))


def _remove(path):
    """Delete a checkpoint; it is renamed first, so that no incomplete folder has its name."""
    if path.exists():
        temporary = temporary_name(path)
        path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _locked(path):
    """Hold the lock of `path`, which the kernel releases when this process ends; BlockingIOError if it is held."""
    handle = os.open(path, os.O_RDONLY)
    try:
        if not try_lock(handle):
            raise BlockingIOError(f"another process holds the lock of {path}")
        yield
    finally:
        os.close(handle)


def _sweep(folder):
    """Delete the temporary files and folders of killed writers: those whose lock nobody holds."""
    for path in folder.glob(f"{TEMPORARY}*"):
        try:
            with _locked(path):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        except OSError:  # still being written, or deleted
            continue


# ---- single files


def save_plain(path, value, records=None):
    """Write with torch.save, atomically; on a full disk a warning is printed and the run continues.

    records: {name: bytes} to write into the archive beside `value`, as in `write_plain`
    """
    try:
        with atomic_file(path) as file:
            write_plain(file, value, records)
        unwritten.pop(str(path), None)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch.save hides its cause
        unwritten[str(path)] = getattr(cause, "strerror", None) or str(cause)
        print(f"warning: {path} could not be written: {unwritten[str(path)]}", flush=True)


def write_plain(file, value, records=None):
    """torch.save into an open file that has a name, with {name: bytes} in the archive, which torch.load ignores."""
    torch.save(value, file)
    file.flush()
    with zipfile.ZipFile(file.name, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        for name, content in (records or {}).items():
            archive.writestr(f"{root}/{name}", content)


def read_record(path, name, limit=MAX_JSON_BYTES):
    """The bytes that `write_plain` wrote as `name`; None where the file has no such record."""
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            found = next((entry for entry in archive.infolist() if entry.filename.partition("/")[2] == name), None)
            if found is None:
                return None
            if found.file_size > limit:
                raise DataError(f"{path}: refused: its record {name} has {found.file_size:,} bytes")
            return archive.read(found)
    except (zipfile.BadZipFile, zlib.error, EOFError, ValueError, RuntimeError) as error:
        raise DataError(f"{path} is not a whole checkpoint ({error}); fetch it again") from error


# ---- loading


def load_latest(folder, say=print):
    """Load the newest checkpoint that is whole.

    say:     receives one line for each damaged checkpoint that is skipped
    returns: (path, tensors, state) with CPU tensors as given to save_checkpoint; None if none was ever saved
    raises:  DataError when all of them are damaged
    """
    folder = Path(folder)
    names = [path.name for path in _newest_first(folder)]
    latest = _read_latest(folder)
    if latest is None and not names:
        return None
    if latest is not None and latest not in names:
        say(f"{folder / LATEST} names {latest!r}, which is not there: looking for an older checkpoint.")
    for name in names:
        try:
            return folder / name, *read_checkpoint(folder / name)
        except DataError as error:
            say(f"{error} Going back to the one before.")
    raise DataError(f"{folder}: no checkpoint can be used; bring one back from a copy or start again with --overwrite.")


def read_checkpoint(path):
    """Verify one checkpoint folder and load it: (tensors, state) as given to save_checkpoint, or DataError."""
    try:
        manifest = _read_json(path / MANIFEST)
        _verify(path, manifest)
        stems = [name.removesuffix(".safetensors") for name in manifest["files"] if name.endswith(".safetensors")]
        return {stem: read_safetensors(path / f"{stem}.safetensors") for stem in stems}, _read_json(path / "state.json")
    except _Damage as error:
        raise DataError(f"Checkpoint {path} is damaged: {error}.") from error
    except OSError as error:
        raise DataError(f"Checkpoint {path} cannot be read: {error.strerror} ({error.filename}).") from error


class _Damage(Exception):
    """The damage of a checkpoint, as half a sentence."""


def _verify(path, manifest):
    files = manifest.get("files") if isinstance(manifest, dict) and manifest.get("format") == FORMAT else None
    if not isinstance(files, dict) or "state.json" not in files:
        raise _Damage(f"{MANIFEST} is not one of format {FORMAT}")
    for name, expected in files.items():
        if not FILE_NAME.fullmatch(name):
            raise _Damage(f"{MANIFEST} names {name!r}, which is not a plain file name")
        if not (path / name).is_file():
            raise _Damage(f"{name} is missing")
        with (path / name).open("rb") as file:
            found = {"size": os.fstat(file.fileno()).st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        if found != expected:
            raise _Damage(f"{name} is not what was written ({found['size']:,} bytes, sha256 {found['sha256'][:12]}...)")


def _read_json(path):
    if path.stat().st_size > MAX_JSON_BYTES:
        raise _Damage(f"{path.name} is larger than {MAX_JSON_BYTES:,} bytes")
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise _Damage(f"{path.name} is not JSON") from error


def _read_latest(folder):
    try:
        with (folder / LATEST).open("rb") as file:
            return file.read(100).decode(errors="replace").strip()
    except OSError:
        return None


def _newest_first(folder):
    """Complete checkpoint folders, latest step first; of one step the replacement comes before the replaced one."""
    found = [(STEP_NAME.fullmatch(path.name), path) for path in Path(folder).glob("step_*")]
    keyed = [(int(match[1]), match[2] is None, path) for match, path in found if match]
    return [path for *_, path in sorted(keyed, reverse=True)]


# ---- optimizers


def flatten_optimizer(optimizer):
    """Split an optimizer's state into (flat, meta).

    flat: {"<parameter index>.<key>": tensor}, for `tensors` of save_checkpoint
    meta: {"kind": class name, "groups": hyperparameters, "values": other entries, such as SGD's None}, for `state`
    """
    saved = optimizer.state_dict()
    entries = {f"{index}.{key}": value for index, state in saved["state"].items() for key, value in state.items()}
    flat = {name: value for name, value in entries.items() if isinstance(value, torch.Tensor)}
    values = {name: value for name, value in entries.items() if name not in flat}
    groups = [{key: _number(value) for key, value in group.items()} for group in saved["param_groups"]]
    return flat, {"kind": type(optimizer).__name__, "groups": groups, "values": values}


def _number(value):
    """A scalar tensor as a number: LAMB counts its steps in a tensor, and converts a number when it is loaded."""
    return value.item() if isinstance(value, torch.Tensor) and value.dim() == 0 else value


def restore_optimizer(optimizer, flat, meta):
    """Restore the state of `flatten_optimizer` in an optimizer over the same parameters, bit for bit."""
    kind = type(optimizer).__name__
    if meta.get("kind", kind) != kind or "correct_bias" in optimizer.defaults.keys() - meta["groups"][0].keys():
        raise DataError(f"The checkpoint's optimizer is {meta.get('kind', 'another one')}, this run's is {kind}.")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    sizes, saved_sizes = (_group_sizes(groups) for groups in (optimizer.param_groups, meta["groups"]))
    if sizes != saved_sizes:
        raise DataError(f"The checkpoint's optimizer has groups of {saved_sizes} parameters, this run's has {sizes}.")
    state = {}
    for name, value in (flat | meta["values"]).items():
        index, key = name.split(".", 1)
        if isinstance(value, torch.Tensor):
            value = _like(value, parameters[int(index)], name)
        state.setdefault(int(index), {})[key] = value
    groups = [_with_tuples(saved, now) for saved, now in zip(meta["groups"], optimizer.param_groups, strict=True)]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _group_sizes(groups):
    return [len(group["params"]) for group in groups]


def _like(value, parameter, name):
    """A copy in the parameter's memory format: fused and foreach kernels are fast only with equal strides."""
    if value.dim() == 0 or name.endswith(("_row", "_col")):  # a step counter, or rows and columns of Adafactor
        return value.clone()
    if value.shape != parameter.shape:
        raise DataError(f"Optimizer entry {name} is {tuple(value.shape)}, its parameter is {tuple(parameter.shape)}.")
    return torch.empty_like(parameter, dtype=value.dtype, device=value.device, requires_grad=False).copy_(value)


def _with_tuples(saved, now):
    """The saved values with tuples where `now` has tuples, such as betas, which JSON turns into lists."""
    return {key: tuple(value) if isinstance(now.get(key), tuple) else value for key, value in saved.items()}
