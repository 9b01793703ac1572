"""A run's folder: what was asked (args.json), what happened (log.jsonl, TensorBoard), what came out (result.json).

    files = RunFolder("snap/vqa/first", flags, program="vqa", resume=True, rank=dist.rank())
    files.log(step=200, epoch=0, loss=2.31, lr=1e-4, seconds=35.2, samples=6400)
    save_checkpoint(files.checkpoints, step, tensors, {"log_position": files.position(), ...})
    files.write_result(task="vqa", split="minival", accuracy=73.91)

A row of the log depends on flags and step alone, so a resumed run writes the same rows as an uninterrupted one. Only
clocks differ, and they live under names that begin with `seconds`.
"""

import contextlib
import datetime
import fcntl
import json
import os
import shutil
import time
from pathlib import Path

from clip_vl.engine.errors import DataError, ProgramError, UserError, printable
from clip_vl.engine.files import TEMPORARY, atomic_json, atomic_write, unwritten
from clip_vl.engine.readers.json_files import parse_json, read_object
from clip_vl.engine.record import describe, finite, now, plain

NOT_INPUTS = ("output", "num_workers", "tqdm", "overwrite", "saliency")  # flags that change no number of an evaluation
UNFINISHED = (f"{TEMPORARY}*",)  # what a killed writer leaves
WRITTEN = (*UNFINISHED, "args.json", "log.jsonl", "result.json", "gallery.json", "report.html", "samples.jsonl",
           "*_predict.json", "*_predict.csv", "result_*.json", "about_*.json",
           "BEST.pth", "LAST.pth", "best.pt", "epoch_*.pt", "Epoch*_LXRT.pth",
           "Epoch*_AdamOptim.pth", "Epoch*_SGDOptim.pth", "Epoch*_Scheduler.pth", "work", "checkpoints/step_*",
           f"checkpoints/{TEMPORARY}*", "checkpoints/LATEST", "tensorboard/events.out.tfevents.*")  # fmt: skip
ESSENTIAL = ("log.jsonl", "result.json", "checkpoints/step_*")  # what a run continues or replaces
LOCK_SECONDS = 15  # a resumed run waits for the end of processes whose launcher died


class RunFolder:
    """The folder of one run. Every rank makes one; only rank 0 touches the disk and speaks.

    folder, checkpoints: paths
    """

    def __init__(self, output, flags, program, resume=False, overwrite=False, rank=0, device="cpu", wait=False):
        """Open `output`: a new folder, or with `resume` the one of a run to go on with if it is there.

        flags:     dict of the flags
        overwrite: delete what an earlier run of this program wrote there; files of others stay
        device:    what the run computes on, for the record
        wait:      delete and write nothing before `start`, so that a failed start leaves everything as it was
        raises:    UserError if the name is taken, another process writes there, or the folder is not writable
        """
        self.folder = Path(output)
        self.checkpoints = self.folder / "checkpoints"
        self._program, self._rank, self._flags, self._device = program, rank, flags, device
        self._disk_full = False
        self.replaces = overwrite
        if resume and overwrite:
            raise UserError("--resume goes on with a run and --overwrite deletes it: pass one of them.")
        if rank == 0:
            self._try(lambda: self._open(resume, overwrite))
        if not wait:
            self.start()

    def _try(self, write):
        try:
            write()
        except OSError as error:
            raise UserError(f"Cannot write to --output {self.folder}: {error.strerror} ({error.filename}).") from error

    def _open(self, resume, overwrite):
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock_or_refuse(self.folder, LOCK_SECONDS if resume else 0)
        before = _read_args(self.folder)
        if before is not None and not (resume or overwrite):
            raise UserError(f"{self.folder} already holds a run: pass --resume to go on with it, --overwrite to delete "
                            "it, or choose another --output.")  # fmt: skip
        if before is not None and (before or overwrite) and before.get("program") != self._program:
            raise UserError(f"{self.folder} holds a run of {before.get('program')}, not of {self._program}: "
                            "choose another --output.")  # fmt: skip
        others = [path.name for name in ESSENTIAL for path in self.folder.glob(name)]
        if before is None and not resume and others:
            raise UserError(f"{self.folder} holds {others[0]} without the args.json of a run of {self._program}: "
                            "choose another --output.")  # fmt: skip
        self._before = None if overwrite else before

    def start(self):
        """Everything that the run needs is there: delete what it replaces, write args.json, open the log."""
        if self._rank == 0:
            self._try(self._start)

    def _start(self):
        _delete(self.folder, WRITTEN if self.replaces else UNFINISHED)
        record = describe(self._program, self.folder.name, self._flags, self._device, self._before)
        atomic_json(self.folder / "args.json", record)
        self._file = (self.folder / "log.jsonl").open("ab", buffering=0)
        self._tensorboard = _TensorBoard(self.folder / "tensorboard", record["started"])

    def log(self, **values):
        """Append one row to log.jsonl, mirror it to TensorBoard, print it. Values: numbers, 0-d tensors, strings.

        step, epoch: where training stands; TensorBoard takes only rows with a `step`
        seconds:     the time this row covers; with `samples`, seen in that time, the report can show throughput
        Numbers that are not finite become null, which every JSON reader takes.
        """
        if self._rank == 0:
            row = {name: plain(value) for name, value in values.items()}
            self._append((json.dumps(row) + "\n").encode())
            self._tensorboard.add([row])
            print(_console_line(row), flush=True)

    def _append(self, line):
        """Write a whole line or none: on a full disk the run goes on and says once that rows are lost."""
        end = self._file.seek(0, os.SEEK_END)
        try:
            if self._file.write(line) < len(line):
                raise OSError("only a part of the row was written")
        except OSError as error:
            self._file.truncate(end)
            if not self._disk_full:
                print(f"Warning: rows of {self._file.name} are lost ({error}); the run goes on.", flush=True)
            self._disk_full = True

    def position(self):
        """The log's length in bytes, all of them safely on disk: what a checkpoint keeps for `truncate`."""
        if self._rank == 0:
            os.fsync(self._file.fileno())
        return self.end()

    def end(self):
        """The log's length in bytes."""
        return self._file.seek(0, os.SEEK_END) if self._rank == 0 else 0

    def truncate(self, position):
        """Forget the rows after `position`: a resumed run writes them again. TensorBoard's copy is made anew."""
        if self._rank != 0:
            return
        content = (self.folder / "log.jsonl").read_bytes()
        if len(content) < position:
            print(f"Warning: {self._file.name} has lost rows since that checkpoint; they stay lost.", flush=True)
        kept = content[: content.rfind(b"\n", 0, position) + 1]
        self._file.truncate(len(kept))
        self._tensorboard.rewrite(parse_json(line) for line in kept.split(b"\n") if line)

    def write_result(self, **values):
        """Write result.json: task, split, checkpoint, and metrics under the names the papers use."""
        if self._rank == 0:
            self._check_weights(values.get("checkpoint"))
            head = {"program": self._program, "name": self.folder.name, "finished": now()}
            atomic_json(self.folder / "result.json", finite(head | values))

    def _check_weights(self, name):
        """Raise ProgramError where the weights that a result is about could not be written."""
        reason = name and unwritten.get(str(self.folder / name))
        if reason:
            raise ProgramError(f"{self.folder / name} could not be written: {reason}; free some room and start again "
                               "with --resume")  # fmt: skip

    def write_predictions(self, name, rows):
        """Write a submission file: `rows`, a list of JSON objects, as `folder`/`name`."""
        if self._rank == 0:
            atomic_write(self.folder / name, json.dumps(rows).encode())


class _TensorBoard:
    """A mirror of the log for TensorBoard. A convenience: whatever goes wrong costs one line, never the run."""

    def __init__(self, folder, started):
        self._folder, self._started = folder, datetime.datetime.fromisoformat(started).timestamp()
        self._seconds = 0.0  # rows stand at `started` plus the seconds before them: an interruption leaves no gap
        self._writer = None
        self._broken = False

    def add(self, rows):
        """Append events for rows of the log and flush them."""
        if not self._broken:
            try:
                for row in rows:
                    self._add(row)
                if self._writer:
                    self._writer.flush()
            except Exception as error:
                print(f"No more TensorBoard events ({type(error).__name__}: {error}); log.jsonl has all.", flush=True)
                self._broken = True

    def rewrite(self, rows):
        """Replace all events by those of `rows`, so that a resumed run shows no step twice."""
        _delete(self._folder, ["events.out.tfevents.*"])
        self._writer, self._seconds = None, 0.0
        self.add(rows)

    def _add(self, row):
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import

            self._writer = SummaryWriter(self._folder)
        self._seconds += row.get("seconds") or 0.0
        for name, value in row.items():
            if "step" in row and name != "step" and isinstance(value, int | float):
                self._writer.add_scalar(name, value, row["step"], walltime=self._started + self._seconds)


# ---- small things


def _lock_or_refuse(folder, seconds):
    """Hold `folder`/.lock until this process ends, in whatever way; wait some seconds for another one to end.

    A record lock, because loader workers must not inherit it."""
    file = (folder / ".lock").open("a")
    deadline = time.monotonic() + seconds
    while True:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return file
        except (BlockingIOError, PermissionError) as error:
            if time.monotonic() > deadline:
                sentence = f"Another process writes to {folder}: wait for its end or take another --output."
                raise UserError(sentence) from error
        except OSError:  # a file system without locks
            return file
        time.sleep(0.2)


def _read_args(folder):
    """The args.json of an earlier run; None without one, {} if it cannot be read."""
    try:
        return read_object(folder / "args.json")
    except DataError:
        return {}


def _delete(folder, patterns):
    for path in (path for pattern in patterns for path in folder.glob(pattern)):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for path in (folder / "checkpoints", folder / "tensorboard"):
        with contextlib.suppress(OSError):  # it holds something else, or is not there
            path.rmdir()


def _console_line(row):
    texts = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
    return printable("  ".join(f"{name} {'not finite' if value is None else value}" for name, value in texts.items()))
