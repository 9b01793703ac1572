"""Saves that are killed or meet a full disk, checkpoints and stores that are damaged. Rows of benchmarks/faults.py."""

import contextlib
import io
import itertools
import os
import resource
import shutil
import signal
import subprocess
import time

import numpy as np
import torch
from fault_check import check

from clip_vl.datasets.features.store import open_features, write_features
from clip_vl.datasets.images.image_lmdb import ImageLMDB
from clip_vl.datasets.images.image_lmdb_writer import write_images
from clip_vl.datasets.storage.lmdb_files import close_reader
from clip_vl.engine.checkpoint import load_latest, save_checkpoint
from clip_vl.engine.errors import ProgramError
from clip_vl.engine.meters import Meters
from clip_vl.engine.optim import Updater
from clip_vl.engine.readers.text import split_lines
from clip_vl.engine.resume import save_training
from clip_vl.engine.run_folder import RunFolder

CPU = torch.device("cpu")


# ---- checkpoints


def tensors_of(step):
    return {f"w{i}": torch.full((500,), step + i / 10) for i in range(8)}


def save(folder, step):
    save_checkpoint(folder, step, {"model": tensors_of(step)}, {"step": step}, keep_last=2)


def killed_saves(count, folder, rng):
    """kill -9 of a process that saves without pause: the newest whole checkpoint loads and is never an older one."""
    step, began = 1, time.monotonic()
    save(folder, step)
    seconds = time.monotonic() - began
    for _ in range(count):
        begun, begins = os.pipe()
        child = os.fork()
        if child == 0:
            for later in itertools.count(step + 1):
                os.write(begins, b"s")
                save(folder, later)
        os.read(begun, 1)
        time.sleep(rng.uniform(0, 3 * seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(begun), os.close(begins)
        said = []
        loaded = load_latest(folder, say=said.append) if folder.exists() else None
        if loaded is not None:
            check(loaded[2]["step"] >= step, f"step {loaded[2]['step']} after {step}")
            check(not [line for line in said if "damaged" in line], f"{said}")
            step = loaded[2]["step"]
            wanted = tensors_of(step)
            check(all(torch.equal(loaded[1]["model"][name], wanted[name]) for name in wanted), f"step {step}: others")
    check(step > 1, "no save was finished")
    save(folder, step + 1)
    check(not list(folder.glob(".tmp-*")), "the next save left what killed ones had begun")
    return f"{step} saves were finished"


def damaged_checkpoints(count, folder, rng):
    """Bit flips, truncations and zeroed blocks in the newest: all noticed, the one before is used."""
    for step in (1, 2):
        save(folder, step)
    files = sorted((folder / "step_00000002").iterdir())
    for number in range(count):
        path = files[number % len(files)]
        with damaged(path, rng):
            said = []
            step = load_latest(folder, say=said.append)[2]["step"]
            check(step == 1 and len(said) == 1 and "step_00000002" in said[0], f"{path.name}: step {step}, {said}")


@contextlib.contextmanager
def damaged(path, rng, block=64):
    """A file with a flipped bit, cut short, or with a block of zeros, while the block runs."""
    whole = data = path.read_bytes()
    while data == whole:  # zeros over zeros
        data, place = bytearray(whole), rng.randrange(len(whole))
        kind = rng.randrange(3)
        if kind == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del data[place:]
        else:
            data[place : place + block] = bytes(len(data[place : place + block]))
    path.write_bytes(data)
    yield
    path.write_bytes(whole)


# ---- full disks


def full_disk(count, folder, rng):
    """A disk that fills up at a random byte of a save: training goes on, the older checkpoint is whole, one line tells.

    The disk is a small one in memory where this process may mount it; else a limit on the size of files ends the write.
    """
    folder.mkdir()
    mounted = subprocess.run(
        [shutil.which("mount") or "false", "-t", "tmpfs", "-o", "size=1m", "faults", folder], capture_output=True
    )
    try:
        refused = sum(save_on_a_full_disk(folder, rng, mounted.returncode == 0) for _ in range(count))
    finally:
        if mounted.returncode == 0:
            subprocess.run(["umount", folder], check=True)
    check(refused > count // 4, f"only {refused} of {count} saves met the end of the disk")
    return f"{refused} saves were refused, by {'a full tmpfs' if mounted.returncode == 0 else 'a limit on file sizes'}"


def save_on_a_full_disk(folder, rng, is_small):
    """Whether a save on a disk with less room than it needs, or a little more, was refused."""
    torch.manual_seed(0)
    model = torch.nn.Linear(100, 100)
    updater = Updater(model, {"adam": (torch.optim.AdamW(model.parameters()), lambda update: 1.0)}, device=CPU)
    shutil.rmtree(folder / "run", ignore_errors=True)
    run, meters = RunFolder(folder / "run", {}, "pretrain"), Meters(CPU)

    def train():
        with updater.forward():
            loss = model(torch.ones(4, 100)).square().mean()
        updater(loss)

    def save(epoch):
        save_training(run, updater, meters, {}, {"epoch": epoch}, flags={}, keep_last=2, data={})

    train()
    save(0)
    train()
    with no_room(folder, rng, is_small), contextlib.redirect_stdout(io.StringIO()) as said:
        save(1)
    lines, step = split_lines(said.getvalue()), load_latest(run.checkpoints)[2]["position"]["epoch"]
    reason = "No space left on device" if is_small else "File too large"
    clear = f"warning: no checkpoint at update 2: {reason}; older ones are whole"
    check((step, lines) in ((1, []), (0, [clear]), (1, [clear])), f"epoch {step}, {lines}")  # the last: it was LATEST
    check(not list(run.folder.rglob(".tmp-*")), "a rest was left")
    train()
    save(2)
    check(load_latest(run.checkpoints)[2]["position"]["epoch"] == 2, "the next save was not taken")
    return bool(lines)


@contextlib.contextmanager
def no_room(folder, rng, is_small):
    """Leave less than the checkpoint of 125 kB needs, or hardly more, in the block."""
    room = rng.randrange(140_000)
    if is_small:
        ballast = folder / "ballast"
        free = shutil.disk_usage(folder).free
        ballast.write_bytes(bytes(max(free - room, 0)))
        yield
        ballast.unlink()
    else:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


# ---- stores


def damaged_stores(count, data_root, folder, rng):
    """Flipped bits, cuts and zeroed pages in feature stores and image stores: the record as written, or a named error.

    LMDB follows the pointers of its own pages unchecked: what a damaged one does to the process is counted apart.
    """
    folder.mkdir()
    images = sorted((data_root / "mscoco" / "val2014").glob("*.jpg"))[:12]
    stores = {name: folder / name for name in ("features.lmdb", "features.h5", "images.lmdb")}
    for name in ("features.lmdb", "features.h5"):
        with write_features(stores[name], {"kind": "grid"}) as writer:
            for number in range(12):
                grid = np.random.default_rng(number).standard_normal((64, 6, 6)).astype(np.float16)
                writer.put(f"image_{number}", {"grid": grid, "height": 480 + number})
    write_images(stores["images.lmdb"], images, 64, 96)
    opened = {
        "features.lmdb": lambda: open_features(stores["features.lmdb"]).load,
        "features.h5": lambda: open_features(stores["features.h5"]).load,
        "images.lmdb": lambda: ImageLMDB(stores["images.lmdb"], 64, 96).get,
    }
    keys = {name: [f"image_{number}" for number in range(12)] for name in opened}
    keys["images.lmdb"] = [image.name for image in images]
    wanted = {name: read_all(opened[name], keys[name]) for name in opened}
    for name in opened:
        close_reader(stores[name])
    killed = 0
    for number in range(count):
        name = list(stores)[number % 3]
        path = stores[name] / "data.mdb" if name.endswith(".lmdb") else stores[name]
        with damaged(path, rng, block=4096):
            killed += read_in_a_fork(lambda: read_all(opened[name], keys[name]), wanted[name], name)  # noqa: B023
    return f"{killed} times LMDB ended the process" if killed else ""


def read_all(opened, keys):
    """The record of each key, or the sentence that it is damaged."""
    load, found = opened(), []
    for key in keys:
        try:
            found.append(load(key))
        except ProgramError as error:
            found.append(str(error))
    return found


def read_in_a_fork(read, wanted, name):
    """Whether reading a damaged store ended its process; it must find each record as it was, or complain by name."""
    child = os.fork()
    if child == 0:
        signal.setitimer(signal.ITIMER_PROF, 20)  # of processor time: a reader that goes round in circles
        code = 3
        try:
            kept = [is_same(*pair) or is_complaint(pair[0], name) for pair in zip(read(), wanted)]
            code = 0 if all(kept) else 2
        except ProgramError as error:
            code = 0 if is_complaint(str(error), name) else 2
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    check(code <= 0, f"{name}: {'another record' if code == 2 else 'an unexpected error'}")
    check(code == 0 or name.endswith(".lmdb"), f"{name}: ended by signal {-code}")
    return code < 0


def is_complaint(sentence, name):
    return isinstance(sentence, str) and name in sentence and "\n" not in sentence


def is_same(record, wanted):
    if isinstance(record, dict) and isinstance(wanted, dict):
        return record.keys() == wanted.keys() and all(np.array_equal(record[field], wanted[field]) for field in wanted)
    return not isinstance(record, dict) and not isinstance(wanted, dict) and record == wanted
