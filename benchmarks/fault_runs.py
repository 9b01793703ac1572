"""Whole runs under fault: killed again and again, one rank killed, stopped by signals. Rows of benchmarks/faults.py.

Every run is compared with one that nobody disturbed: weights, optimizers, counters and log, to the last bit.
"""

import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from fault_check import Broken, check

from clip_vl.engine.checkpoint import LATEST, load_latest
from clip_vl.engine.readers.text import split_lines

ROOT = Path(__file__).resolve().parent.parent
RUN = """--random_init --clip_model_name RN-tiny --llayers 1 --use_positional_embedding --no-bf16 --resume
    --image_size_min 64 --image_size_max 96 --batchSize 8 --sentences_per_image 2 --max_train_samples 64
    --max_eval_samples 24 --report_step 1 --checkpoint_steps 2""".split()
START_SECONDS = 5  # from the command to the first update


def rows_per_epoch(nproc):
    """Of the log: the updates for 64 sentences, and a validation."""
    return 8 // nproc + 1


class Runs:
    """Pre-training runs below a folder, `at_once` of them at the same time."""

    def __init__(self, folder, data_root, rng, at_once=1):
        self.folder, self.data_root, self.rng, self.at_once = Path(folder), data_root, rng, at_once
        self.undisturbed = {}
        # A shell's background job ignores SIGINT, and what it starts could not trap it: with a handler here it can.
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def start(self, name, nproc, workers, epochs, restarts=0):
        command = ["bash", "scripts/pretrain.bash", "cpu", name, "0", nproc, *RUN, "--epochs", epochs]
        command += ["--num_workers", workers, "--data_root", self.data_root, "--output", self.folder / name]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RESTARTS": str(restarts), "PYTHON": sys.executable}
        return subprocess.Popen(
            [*map(str, command)], cwd=ROOT, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def finish(self, name, nproc, workers, epochs):
        process = self.start(name, nproc, workers, epochs)
        said = process.communicate()[0]
        check(process.returncode == 0, f"{name} ended with {process.returncode}: {said[-300:]}")

    def rows(self, name):
        path = self.folder / name / "log.jsonl"
        return split_lines(path.read_text()) if path.exists() else []

    def wait_for_rows(self, name, rows, process):
        while len(self.rows(name)) < rows and process.poll() is None:
            time.sleep(0.01)

    def outcome(self, name):
        """Everything that must not depend on interruptions: weights, optimizers, counters, log without clocks."""
        _, tensors, state = load_latest(self.folder / name / "checkpoints")
        log = [{k: v for k, v in json.loads(row).items() if not k.startswith("seconds")} for row in self.rows(name)]
        return tensors, state["updater"], log

    def prepare(self, process_counts, epochs):
        """The runs that nobody disturbs."""
        for nproc in process_counts:
            if (nproc, epochs) not in self.undisturbed:
                self.finish(f"undisturbed_{nproc}_{epochs}", nproc, 0, epochs)
                self.undisturbed[nproc, epochs] = self.outcome(f"undisturbed_{nproc}_{epochs}")

    def compare(self, name, nproc, epochs):
        (tensors, counters, log), (wanted, wanted_counters, wanted_log) = (
            self.outcome(name),
            self.undisturbed[nproc, epochs],
        )
        check(log == wanted_log, f"{name}: another log")
        check(counters == wanted_counters, f"{name}: other counters")
        for stem, flat in wanted.items():
            check(all(torch.equal(flat[n], tensors[stem][n]) for n in flat), f"{name}: other {stem}")
        left = [path.name for path in (self.folder / name).rglob(".tmp-*")]
        check(not left, f"{name}: left {left}")
        shutil.rmtree(self.folder / name)

    def disturb(self, count, most, epochs, disturb):
        """Start runs until `count` faults have met a living one; `disturb(number, faults, rng)` returns how many did.

        most: how many faults one run gets; it is of so many epochs

        returns: the number of runs; raises Broken with the first complaint and how many runs had one
        """
        self.prepare((1, 2), epochs)
        numbers, injected, complaints = itertools.count(), 0, []

        def one(plan):
            try:
                return disturb(*plan)
            except Broken as error:
                complaints.append(str(error))
                return plan[1]

        with ThreadPoolExecutor(self.at_once) as pool:
            while injected < count:
                sizes = [min(most, count - i) for i in range(injected, count, most)]
                injected += sum(pool.map(one, [(next(numbers), n, random.Random(self.rng.random())) for n in sizes]))
        runs = next(numbers)
        check(not complaints, f"{len(complaints)} of {runs} runs; the first: {complaints and complaints[0]}")
        return runs


def killed_runs(count, runs):
    """kill -9 of all processes at a random moment, some times in the life of a run, which ends with the same bits."""

    epochs = 4

    def disturb(number, kills, rng):
        nproc, workers, name = 1 + number % 2, (0, 2)[number // 2 % 2], f"killed_{number}"
        met = 0
        for moment in sorted(rng.sample(range(epochs * rows_per_epoch(nproc)), kills)):
            process = runs.start(name, nproc, workers, epochs)
            runs.wait_for_rows(name, moment, process)
            time.sleep(rng.uniform(0, 0.3) if moment else rng.uniform(0, START_SECONDS))
            met += kill_all(process)
            process.communicate()
        runs.finish(name, nproc, workers, epochs)
        runs.compare(name, nproc, epochs)
        return met

    return f"in {runs.disturb(count, 8, epochs, disturb)} runs"


def kill_all(launcher):
    """kill -9 of the launcher and all below it; whether it still ran. Stopped first, it starts no more of them."""
    if launcher.poll() is not None:
        return False
    os.killpg(launcher.pid, signal.SIGSTOP)
    for rank in ranks_of(launcher.pid):
        os.kill(rank, signal.SIGKILL)
    os.killpg(launcher.pid, signal.SIGKILL)
    return True


def killed_ranks(count, runs):
    """kill -9 of one of two ranks, again and again in one run, which starts again by itself (RESTARTS)."""
    epochs = 2 + count // 3
    runs.prepare([2], epochs)
    process, kills, seen = runs.start("ranks", 2, 0, epochs, restarts=count + 5), 0, 0
    while process.poll() is None:
        rows = len(runs.rows("ranks"))
        if kills < count and rows > seen:
            time.sleep(runs.rng.uniform(0, 0.3))
            ranks = ranks_of(process.pid)
            if len(ranks) == 2:
                os.kill(runs.rng.choice(ranks), signal.SIGKILL)
                kills, seen = kills + 1, rows
                time.sleep(1)
        time.sleep(0.05)
    said = process.communicate()[0]
    check(process.returncode == 0, f"ended with {process.returncode}: {said[-300:]}")
    check(kills == count, f"only {kills} of {count} kills found the run alive")
    runs.compare("ranks", 2, epochs)
    return f"in one run, {said.count(': restart ')} restarts"


def ranks_of(launcher):
    """The processes that torchrun, a child of the launcher, has started; each has a session of its own."""

    def children(pid):
        return subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()

    return [int(rank) for torchrun in children(launcher) for rank in children(torchrun)]


def signals(count, runs):
    """SIGTERM, SIGINT, SIGUSR1: a checkpoint within 5 seconds, exit 75, resumed to the same bits."""
    epochs, until_saved, until_gone = 5, [0.0], [0.0]

    def disturb(number, wanted, rng):
        nproc, name = 1 + number % 2, f"signal_{number}"
        met = 0
        while met < wanted:
            process = runs.start(name, nproc, 0, epochs)
            runs.wait_for_rows(name, len(runs.rows(name)) + rng.randint(1, 2), process)
            time.sleep(rng.uniform(0, 0.1))
            is_ending = len(runs.rows(name)) > (epochs - 1) * rows_per_epoch(nproc)
            sent, began = rng.choice((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)), time.time()
            os.kill(process.pid, sent)
            said = process.communicate()[0]
            if process.returncode == 0 and is_ending:
                break
            met += 1
            check(process.returncode == 75, f"{name}: exit {process.returncode} after {sent.name}: {said[-300:]}")
            until_gone.append(time.time() - began)
            until_saved.append((runs.folder / name / "checkpoints" / LATEST).stat().st_mtime - began)
            # Before the signal, when that came in a validation: what was saved ahead of it is all there is to save.
            check(until_saved[-1] < 5, f"{name}: saved {until_saved[-1]:.1f} s after {sent.name}")
        runs.finish(name, nproc, 0, epochs)
        runs.compare(name, nproc, epochs)
        return met

    number = runs.disturb(count, 10, epochs, disturb)
    return f"in {number} runs; saved within {max(until_saved):.1f} s, gone within {max(until_gone):.1f} s"
