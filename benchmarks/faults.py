"""Injects faults and counts what survived: killed runs and ranks, killed saves, damaged checkpoints, signals,
non-finite steps, damaged images and annotations, hostile checkpoints.

    .venv/bin/python benchmarks/faults.py --data_root data/shapes_smoke --share 0.1     a tenth: ten minutes
    .venv/bin/python benchmarks/faults.py --data_root data/shapes_smoke                 all: more than an hour

Draw the data with `python -m clip_vl.shapes --size smoke --output data/shapes_smoke`. Every random choice follows from
--seed, but for when exactly a signal arrives. Exits with 1 when a promise was broken; the row says how. Full disks are
injected by the tests (tests/engine/test_checkpoint.py).
"""

import argparse
import itertools
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from clip_vl.datasets.annotations import build_vqa_annotations  # noqa: E402
from clip_vl.datasets.images import DamagedImage, decode_image  # noqa: E402
from clip_vl.datasets.text import load_tokenizer  # noqa: E402
from clip_vl.engine.checkpoint import load_latest, save_checkpoint  # noqa: E402
from clip_vl.engine.errors import DataError, ProgramError  # noqa: E402
from clip_vl.engine.optim import Updater  # noqa: E402
from clip_vl.models.weights import read_state_dict  # noqa: E402

RUN = """--random_init --clip_model_name RN-tiny --llayers 1 --use_positional_embedding --no-bf16 --resume
    --image_size_min 64 --image_size_max 96 --batchSize 8 --sentences_per_image 2 --max_train_samples 64
    --max_eval_samples 24 --report_step 1 --checkpoint_steps 2""".split()


class Broken(Exception):
    """A promise that was not kept."""


def check(kept, what):
    if not kept:
        raise Broken(what)


# ---- whole runs


class Runs:
    """Pre-training runs below a folder, each compared with an uninterrupted one of as many processes."""

    def __init__(self, folder, data_root, rng):
        self.folder, self.data_root, self.rng = folder, data_root, rng
        self.reference = {}

    def start(self, name, nproc, workers, epochs=2, restarts=0):
        command = ["bash", "scripts/pretrain.bash", "cpu", name, "0", nproc, *RUN, "--epochs", epochs]
        command += ["--num_workers", workers, "--data_root", self.data_root, "--output", self.folder / name]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "RESTARTS": str(restarts), "PYTHON": sys.executable}
        return subprocess.Popen(
            [*map(str, command)], cwd=ROOT, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def finish(self, name, nproc, workers, epochs=2):
        process = self.start(name, nproc, workers, epochs)
        said = process.communicate()[0]
        check(process.returncode == 0, f"{name} ended with {process.returncode}: {said[-200:]}")

    def rows(self, name):
        path = self.folder / name / "log.jsonl"
        return path.read_text().splitlines() if path.exists() else []

    def wait_for_rows(self, name, rows, process):
        while len(self.rows(name)) < rows and process.poll() is None:
            time.sleep(0.01)

    def outcome(self, name):
        """Everything that must not depend on interruptions: weights, optimizers, counters, log without clocks."""
        _, tensors, state = load_latest(self.folder / name / "checkpoints")
        log = [{k: v for k, v in json.loads(row).items() if not k.startswith("seconds")} for row in self.rows(name)]
        return tensors, state["updater"], log

    def compare(self, name, nproc, epochs=2):
        key = (nproc, epochs)
        if key not in self.reference:
            self.finish(f"reference_{nproc}_{epochs}", nproc, 0, epochs)
            self.reference[key] = self.outcome(f"reference_{nproc}_{epochs}")
        (tensors, counters, log), (wanted, wanted_counters, wanted_log) = self.outcome(name), self.reference[key]
        check(log == wanted_log, f"{name}: another log")
        check(counters == wanted_counters, f"{name}: other counters")
        for stem, flat in wanted.items():
            check(all(torch.equal(flat[n], tensors[stem][n]) for n in flat), f"{name}: other {stem}")


def killed_runs(count, runs):
    """kill -9 of all processes at a random moment; then the run goes on to the same bits."""
    for number in range(count):
        nproc, workers = 1 + number % 2, (0, 2)[number // 2 % 2]
        process = runs.start(f"killed_{number}", nproc, workers)
        runs.wait_for_rows(f"killed_{number}", runs.rng.randint(0, 8), process)
        time.sleep(runs.rng.uniform(0, 0.2))
        for rank in ranks_of(process.pid) if nproc > 1 else ():
            os.kill(rank, signal.SIGKILL)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        runs.finish(f"killed_{number}", nproc, workers)
        runs.compare(f"killed_{number}", nproc)


def killed_ranks(count, runs):
    """kill -9 of one of two ranks, again and again in one run, which starts again by itself (RESTARTS)."""
    process, kills, seen, epochs = runs.start("ranks", 2, 0, 8, restarts=count + 5), 0, 0, 8
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
    check(process.returncode == 0, f"ended with {process.returncode}: {said[-200:]}")
    check(kills == count, f"only {kills} of {count} kills found the run alive")
    runs.compare("ranks", 2, epochs)


def ranks_of(launcher):
    """The processes that torchrun, a child of the launcher, has started; each has a session of its own."""

    def children(pid):
        return subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True).stdout.split()

    return [int(rank) for torchrun in children(launcher) for rank in children(torchrun)]


def signals(count, runs):
    """SIGTERM, SIGINT, SIGUSR1: saved within 5 seconds, exit 75, resumed to the same bits."""
    for number in range(count):
        sent = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)[number % 3]
        name, nproc = f"signal_{number}", 1 + number // 3 % 2
        process = runs.start(name, nproc, 0)
        runs.wait_for_rows(name, runs.rng.randint(1, 6), process)
        start = time.monotonic()
        os.kill(process.pid, sent)
        process.communicate()
        seconds = time.monotonic() - start
        check(process.returncode in (0, 75), f"{name}: exit {process.returncode}")  # 0: it had just ended
        check(seconds < 5 + 3 * (nproc > 1), f"{name}: took {seconds:.1f} s")  # torchrun takes its own time to leave
        runs.finish(name, nproc, 0)
        runs.compare(name, nproc)


# ---- checkpoints


def save(folder, step):
    tensors = {"model": {f"w{i}": torch.full((500,), step + i / 10) for i in range(8)}}
    save_checkpoint(folder, step, tensors, {"step": step}, keep_last=2)


def killed_saves(count, folder, rng):
    """kill -9 of a process that saves without pause: the newest whole checkpoint loads and is never an older one."""
    step = 0
    for _ in range(count):
        child = os.fork()
        if child == 0:
            for later in itertools.count(step + 1):
                save(folder, later)
        time.sleep(rng.uniform(0.005, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        loaded = load_latest(folder, say=lambda line: None) if folder.exists() else None
        if loaded is not None:
            check(loaded[2]["step"] >= step, f"step {loaded[2]['step']} after {step}")
            step = loaded[2]["step"]
    check(step > count // 4, f"only {step} saves were finished")


def damaged_checkpoints(count, folder, rng):
    """Bit flips, truncations and zeroed blocks in the newest: all noticed, the one before is used."""
    for step in (1, 2):
        save(folder, step)
    files = sorted((folder / "step_00000002").iterdir())
    for number in range(count):
        path = rng.choice(files)
        whole = path.read_bytes()
        data, place = bytearray(whole), rng.randrange(len(whole))
        if number % 3 == 0:
            data[place] ^= 1 << rng.randrange(8)
        elif number % 3 == 1:
            del data[place:]
        else:
            data[place : place + 64] = bytes(len(data[place : place + 64]))
        if bytes(data) == whole:
            continue  # zeros over zeros
        path.write_bytes(data)
        said = []
        step = load_latest(folder, say=said.append)[2]["step"]
        check(step == 1 and len(said) == 1, f"{path.name}: step {step}, {said}")
        path.write_bytes(whole)


def hostile_checkpoints(count, folder, rng):
    """Pickles that would run code: refused in one sentence, and nothing has run."""
    folder.mkdir()
    bait = folder / "ran"
    calls = [(os.system, (f"touch {bait}",)), (eval, (f"open({str(bait)!r}, 'w')",)), (os.mkdir, (str(bait),))]
    calls += [(subprocess.check_output, (["touch", str(bait)],)), (exec, (f"open({str(bait)!r}, 'w')",))]

    class Call:
        def __init__(self, function, arguments):
            self.reduced = function, arguments

        def __reduce__(self):
            return self.reduced

    for number in range(count):
        payload = {"model": {"w": Call(*calls[number % len(calls)])}, "epoch": rng.randrange(100)}
        data, path = pickle.dumps(payload, protocol=2 + number % 4), folder / f"{number}.pth"
        if number % 2:
            with zipfile.ZipFile(path, "w") as archive:
                archive.writestr("archive/data.pkl", data)
                archive.writestr("archive/version", "3")
        else:
            path.write_bytes(data)
        try:
            read_state_dict(path)
        except (ProgramError, DataError):
            pass
        else:
            raise Broken(f"{path.name} was read")
        check(not bait.exists(), f"{path.name} ran")


# ---- steps and data


def non_finite_steps(count, rng):
    """One update in a hundred is not finite: exactly those are skipped, the weights are those of the others alone."""

    def train(steps, bad):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 1)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        updater = Updater(
            model, {"adam": (optimizer, lambda update: 1.0)}, device=torch.device("cpu"), max_skipped=count
        )
        for step in steps:
            x = torch.randn(4, 8, generator=torch.Generator().manual_seed(step))
            with updater.micro_batch(is_last=True):
                loss = model(x).square().mean()
                updater.backward(loss * (float("nan") if step in bad else 1.0), 1)
            updater.step()
        return model.state_dict(), updater

    bad = set(rng.sample(range(count), max(1, count // 100)))
    weights, updater = train(range(count), bad)
    expected, _ = train([step for step in range(count) if step not in bad], set())
    found = updater.skipped, updater.update
    check(found == (len(bad), count - len(bad)), f"{found[0]} of {len(bad)} skipped")
    check(all(torch.equal(weights[name], expected[name]) for name in weights), "other weights")


def damaged_images(count, data_root, rng):
    """Flipped bits, cuts and foreign bytes in JPEGs: a picture or a DamagedImage that names it, nothing else.

    A decoder does not notice every damage: how often another picture came out is told. The LMDBs keep digests.
    """
    silent = 0
    files = sorted(data_root.rglob("*.jpg"))[:40]
    originals = [file.read_bytes() for file in files]
    for number in range(count):
        original = rng.choice(originals)
        data = bytearray(original)
        if number % 4 == 0:
            del data[rng.randrange(len(data)) :]
        elif number % 4 == 1:
            place = rng.randrange(len(data))
            data[place : place + 32] = rng.randbytes(32)
        else:
            for _ in range(rng.randint(1, 20)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            picture = decode_image(bytes(data), f"mutation {number}")
        except DamagedImage as error:
            check(f"mutation {number}" in str(error), f"unnamed: {error}")
        else:
            check(picture.dtype == torch.uint8 and picture.shape[0] == 3, f"{picture.dtype} {picture.shape}")
            silent += not torch.equal(picture, decode_image(original))
    return f"{silent} decode to another picture without an error"


def damaged_annotations(count, data_root, folder, rng):
    """Mutated VQA files: read, or refused with the file's name in one line."""
    folder.mkdir()
    rows = json.loads((data_root / "vqa" / "minival.json").read_text())[:30]
    text = json.dumps(rows, indent=1)
    answers = json.loads((data_root / "vqa" / "trainval_label2ans.json").read_text())
    tokenizer = load_tokenizer(data_root / "bert-base-uncased")
    path = folder / "minival.json"
    for _ in range(count):
        place = rng.randrange(len(text))
        cut = rng.choice(("", "\x00", "}", '"', "[", "null", text[: rng.randrange(50)]))
        path.write_text(text[:place] + cut + text[place + rng.randrange(12) :])
        try:
            build_vqa_annotations(
                [path], tokenizer=tokenizer, answers=answers, cache_root=folder / "cache",
                image_sizes=data_root / "mscoco" / "width_heigths.json",
            )  # fmt: skip
        except ProgramError as error:
            check(path.name in str(error) and "\n" not in str(error), f"unclear: {error}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the counts")
    parser.add_argument("--only", default="", help="rows to run, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data_root, rng = args.data_root.resolve(), random.Random(args.seed)
    broken = 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg's and the unpickler's remarks on what is fed to them
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        runs = Runs(folder, data_root, rng)
        rows = {
            "killed runs": (200, lambda n: killed_runs(n, runs)),
            "killed ranks": (20, lambda n: killed_ranks(n, runs)),
            "signals": (100, lambda n: signals(n, runs)),
            "killed saves": (500, lambda n: killed_saves(n, folder / "saves", rng)),
            "damaged checkpoints": (3000, lambda n: damaged_checkpoints(n, folder / "damaged", rng)),
            "hostile checkpoints": (200, lambda n: hostile_checkpoints(n, folder / "hostile", rng)),
            "non-finite steps": (5000, lambda n: non_finite_steps(n, rng)),
            "damaged images": (10000, lambda n: damaged_images(n, data_root, rng)),
            "damaged annotations": (2000, lambda n: damaged_annotations(n, data_root, folder / "annotations", rng)),
        }
        for name, (count, inject) in rows.items():
            if args.only and name not in args.only.split(","):
                continue
            count, start = max(1, round(count * args.share)), time.monotonic()
            try:
                remark = inject(count)
                verdict = f"held; {remark}" if remark else "held"
            except Broken as error:
                verdict, broken = f"BROKEN: {error}", broken + 1
            print(f"{name:20s} {count:6d}   {time.monotonic() - start:6.0f} s   {verdict}", flush=True)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
