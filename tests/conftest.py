"""Shared fixtures: the smoke-sized built-in data set, and programs run as a user runs them."""

import contextlib
import fcntl
import importlib
import io
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import Finished, UserError
from clip_vl.engine.run_folder import RunFolder
from clip_vl.engine.signals import SIGNALS
from clip_vl.flags.parser import parse

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHON": sys.executable}

# The smallest model and run that go through everything.
TINY = ["--random_init", "--clip_model_name", "RN-tiny", "--llayers", "1", "--batchSize", "8",
        "--sentences_per_image", "2", "--report_step", "3",
        "--image_size_min", "64", "--image_size_max", "96", "--use_positional_embedding", "--no-bf16",
        "--max_train_samples", "64", "--max_eval_samples", "24"]  # fmt: skip
ONE_STREAM = ["--visualbert_style", "--xlayers", "0", "--rlayers", "0", "--input_raw_images"]
PRETRAIN = [*ONE_STREAM, "--taskMaskLM", "--taskMatched"]


def pytest_configure(config):
    """Start the server that forks processes, one for all workers of xdist; it imports nothing before it is asked."""
    if hasattr(config, "workerinput"):
        return
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # a free name that is no file
        listener.listen()
        os.environ["CLIP_VL_FORKS"] = listener.getsockname().decode().removeprefix("\0")
        command = [sys.executable, ROOT / "tests" / "forks.py", str(listener.fileno())]
        config.forks = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, pass_fds=[listener.fileno()],
                                        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)  # fmt: skip


def pytest_unconfigure(config):
    if hasattr(config, "forks"):
        config.forks.communicate()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data, or a skip."""
    folder = Path(os.environ.get("CLIP_VL_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder} (CLIP_VL_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def shared(tmp_path_factory):
    """`shared(name, build)`: the folder of that name after `build(folder)`, which one of the workers of xdist calls."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def build_once(name, build):
        with (base / f"{name}.lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not lock.seek(0, os.SEEK_END):
                build(base / name)
                lock.write("built")
        return base / name

    return build_once


@pytest.fixture(scope="session")
def shapes_root(shared):
    """A data root with the built-in data set, smoke size. Tests that change it must copy it."""
    return shared("shapes", lambda root: run_program("shapes", "--output", root, "--size", "smoke", "--workers", "1"))


@pytest.fixture(scope="session")
def pretrained(shared, shapes_root):
    """The stem of a pre-trained checkpoint with an answer head, after one epoch."""
    given = [*PRETRAIN, *TINY, "--taskQA", "--data_root", shapes_root, "--epochs", "1", "--valid", ""]
    return shared("stage_two", lambda output: run_program("pretrain", *given, "--output", output)) / "Epoch01"


def same_run(one, two):
    """Assert that weights, optimizers and log, but for its clocks, of two runs are identical to the last bit."""
    (_, whole, a), (_, other, b) = (load_latest(Path(run) / "checkpoints") for run in (one, two))
    for stem, flat in whole.items():
        assert all(torch.equal(flat[name], other[stem][name]) for name in flat), stem
    assert a["updater"] == b["updater"]
    logs = [[json.loads(line) for line in log_rows(run)] for run in (one, two)]
    assert len(logs[0]) == len(logs[1]) > 0
    for row, same in zip(*logs):
        assert [item for item in row.items() if "seconds" not in item[0]] == [
            item for item in same.items() if "seconds" not in item[0]
        ]


def run_program(name, *flags, check=True, nproc=1):
    """Run clip_vl.<name> to its end; in this process where one that should succeed is asked for, which saves seconds.

    returns: an object with returncode, stdout and stderr
    """
    if check and nproc == 1:
        return run_here(name, *flags)
    done = Forked(program=name, flags=list(map(str, flags)), nproc=nproc)
    stdout, stderr = done.communicate(timeout=240)
    if check:
        assert done.returncode == 0, stdout + stderr
    return SimpleNamespace(returncode=done.returncode, stdout=stdout, stderr=stderr)


def run_here(name, *flags):
    """`main` of a program with its flags parsed as from a command line; what it raises comes through."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    torch.set_num_threads(1)  # as in the processes that tests start: another number rounds otherwise
    program = importlib.import_module(f"clip_vl.{name}")
    flags_class = next(v for k, v in vars(program).items() if k.endswith("Flags") and v.__module__ == program.__name__)
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr), contextlib.suppress(Finished):
        try:
            args = _parsed(flags_class, program.__doc__, flags, stderr)
            program.main(args)
        finally:
            for number, handler in handlers.items():  # a program's own would reach the children of the next one
                signal.signal(number, handler)
    return SimpleNamespace(returncode=0, stdout=stdout.getvalue(), stderr=stderr.getvalue())


def _parsed(flags_class, doc, flags, stderr):
    try:
        return parse(flags_class, doc, [str(flag) for flag in flags])
    except SystemExit as stop:
        assert stop.code == UserError.exit_code
        raise UserError(stderr.getvalue().strip()) from None


def start(name, *flags):
    """Start a program in a process group of its own, stdout and stderr together."""
    return Forked(program=name, flags=list(map(str, flags)), merged=True)


def launch(name, *flags, nproc=2, restarts=0):
    """Start a program by the launch script, as users do: torchrun imports torch once for itself and each process."""
    return subprocess.Popen(
        ["bash", "scripts/launch.bash", name, "cpu", "0", str(nproc), *map(str, flags)],
        cwd=ROOT, env=ENVIRONMENT | {"RESTARTS": str(restarts)}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


class Forked:
    """Processes forked by tests/forks.py, with the part of Popen's interface that tests use.

    pid: of the first process, which leads the group of all
    """

    def __init__(self, nproc=1, merged=False, **what):
        self._stdout, self._stderr = (tempfile.TemporaryFile("w+") for _ in range(2))
        self._server = socket.socket(socket.AF_UNIX)
        self._server.connect("\0" + os.environ["CLIP_VL_FORKS"])
        request = json.dumps({"nproc": nproc, **what}).encode()
        files = (self._stdout, self._stdout if merged else self._stderr)
        socket.send_fds(self._server, [request], [file.fileno() for file in files])
        self.pid, self.returncode = self._numbers(nproc)[0], None

    def _numbers(self, count):
        return struct.unpack(f"{count}i", self._server.recv(4 * count, socket.MSG_WAITALL))

    def poll(self, timeout=0):
        if self.returncode is None and select.select([self._server], [], [], timeout)[0]:
            (self.returncode,) = self._numbers(1)
        return self.returncode

    def communicate(self, timeout):
        """(stdout, stderr) once all have ended; after `timeout` seconds they are killed."""
        ended = self.poll(timeout) is not None
        if not ended:
            os.killpg(self.pid, signal.SIGKILL)
        for file in (self._stdout, self._stderr):
            file.seek(0)
        text = self._stdout.read(), self._stderr.read()
        assert ended, f"no end after {timeout} s:\n{text}"
        return text


def run_cases(path, folder, *sizes):
    """{W: what `case(folder)` of the test file returned in each of W processes, in rank order}, joined by gloo."""
    running = [Forked(case=str(path), folder=str(folder), nproc=W) for W in sizes]
    for process in running:
        text = process.communicate(timeout=240)
        assert process.returncode == 0, text
    return {W: [torch.load(folder / f"{W}.{rank}.pt") for rank in range(W)] for W in sizes}


def wait_for_rows(output, rows, process):
    deadline = time.monotonic() + 120
    while len(log_rows(output)) < rows and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def interrupt(name, *flags, number, after, of=RunFolder.log, nproc=1):
    """Run a program that gets signal `number` when `of` has returned `after` times, by default with the row of its log
    of that number: (exit code, stdout and stderr).

    SIGKILL goes to all its processes, others to itself.
    """
    when = [of.__module__, of.__qualname__, after, int(number)]
    process = Forked(program=name, flags=list(map(str, flags)), signal=when, nproc=nproc, merged=True)
    text = process.communicate(timeout=240)[0]
    return process.returncode, text


def log_rows(folder):
    path = Path(folder) / "log.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


@pytest.fixture(scope="session")
def programs():
    """The helpers above, as a namespace: tests are imported one by one and cannot import each other."""
    return SimpleNamespace(
        run=run_program, run_here=run_here, start=start, launch=launch, cases=run_cases, interrupt=interrupt,
        log_rows=log_rows, wait_for_rows=wait_for_rows, same_run=same_run,
        TINY=TINY, PRETRAIN=PRETRAIN, ONE_STREAM=ONE_STREAM, root=ROOT,
    )  # fmt: skip


@pytest.fixture(scope="session")
def caption_folder():
    """Function (folder, rows, side, width) -> the folder, with images of four colours, pairs.csv and a BERT's files."""
    return write_captions


def write_captions(root, rows=16, side=32, width=48):
    """Images of four colours and their captions in pairs.csv; vocab.txt and config.json of a BERT of one layer."""
    import numpy as np
    from PIL import Image

    rng, lines, colours = np.random.default_rng(0), ["filepath,title"], ["red", "green", "blue", "white"]
    for row in range(rows):
        kind = row % 4
        tint = 190 * np.array([kind in (0, 3), kind in (1, 3), kind in (2, 3)])
        pixels = rng.integers(0, 60, (side, side, 3)) + tint
        Image.fromarray(pixels.astype(np.uint8)).save(root / f"{row}.png")
        lines.append(f"{row}.png,a {colours[kind]} picture {row}")
    (root / "pairs.csv").write_text("\n".join(lines) + "\n")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "picture", *colours, *map(str, range(rows))]
    (root / "vocab.txt").write_text("\n".join(words) + "\n")
    config = {"vocab_size": len(words), "hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 4,
              "intermediate_size": 2 * width, "max_position_embeddings": 32, "model_type": "bert"}  # fmt: skip
    (root / "config.json").write_text(json.dumps(config))
    return root
