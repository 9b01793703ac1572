"""Shared fixtures: the smoke-sized built-in data set, and programs run as a user runs them."""

import contextlib
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import UserError
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


@pytest.fixture(scope="session")
def real_data():
    """The folder of real data, or a skip."""
    folder = Path(os.environ.get("CLIP_VL_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data absent: {folder} (CLIP_VL_REAL_DATA)")
    return folder


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A data root with the built-in data set, smoke size. Tests that change it must copy it."""
    root = tmp_path_factory.mktemp("data") / "shapes"
    run_program("shapes", "--output", str(root), "--size", "smoke", "--workers", "1")
    return root


@pytest.fixture(scope="session")
def pretrained(shapes_root, tmp_path_factory):
    """The stem of a pre-trained checkpoint with an answer head, after one epoch."""
    output = tmp_path_factory.mktemp("pretrain") / "stage_two"
    given = [*PRETRAIN, *TINY, "--taskQA", "--data_root", shapes_root, "--epochs", "1", "--valid", ""]
    run_program("pretrain", *given, "--output", output)
    return output / "Epoch01"


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
    done = subprocess.run(command(name, *flags, nproc=nproc), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True,
                          timeout=240)  # fmt: skip
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def run_here(name, *flags):
    """`main` of a program with its flags parsed as from a command line; what it raises comes through."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    torch.set_num_threads(1)  # as in the processes that tests start: another number rounds otherwise
    program = importlib.import_module(f"clip_vl.{name}")
    flags_class = next(v for k, v in vars(program).items() if k.endswith("Flags") and v.__module__ == program.__name__)
    stdout, stderr = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
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


def command(name, *flags, nproc=1):
    if nproc == 1:
        return [sys.executable, "-m", f"clip_vl.{name}", *map(str, flags)]
    return ["bash", "scripts/launch.bash", name, "cpu", "0", str(nproc), *map(str, flags)]


def start(name, *flags, nproc=1, restarts=0):
    """Start a program in a process group of its own."""
    return subprocess.Popen(
        command(name, *flags, nproc=nproc), cwd=ROOT, env=ENVIRONMENT | {"RESTARTS": str(restarts)},
        start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def wait_for_rows(output, rows, process):
    deadline = time.monotonic() + 120
    while len(log_rows(output)) < rows and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)


def interrupt(name, *flags, number, after, nproc=1):
    """Start a program, send signal `number` once its log has `after` rows, and wait: (exit code, output).

    SIGKILL goes to the whole process group; others go to the process that was started, as a scheduler sends them.
    """
    process = start(name, *flags, nproc=nproc)
    wait_for_rows(Path(flags[flags.index("--output") + 1]), after, process)
    if process.poll() is None:
        (os.killpg if number == signal.SIGKILL else os.kill)(process.pid, number)
    text = process.communicate(timeout=60)[0]
    return process.returncode, text


def log_rows(folder):
    path = Path(folder) / "log.jsonl"
    return path.read_text().splitlines() if path.is_file() else []


@pytest.fixture(scope="session")
def programs():
    """The helpers above, as a namespace: tests are imported one by one and cannot import each other."""
    return SimpleNamespace(
        run=run_program, run_here=run_here, start=start, interrupt=interrupt, log_rows=log_rows,
        wait_for_rows=wait_for_rows, same_run=same_run,
        TINY=TINY, PRETRAIN=PRETRAIN, ONE_STREAM=ONE_STREAM, root=ROOT,
    )  # fmt: skip
