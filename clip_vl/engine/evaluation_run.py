"""An evaluation's folder: args.json, what is computed so far (work/), and at the end samples.jsonl, result.json,
gallery.json and report.html.

    run = EvaluationRun("probes", args.run(), device, write_report)
    if run.begin({"weights": digest, ...}): return            # this very evaluation is finished already
    features = run.in_parts("images", 12, compute)            # parts that are on disk are not computed again
    run.finish(rows, result, gallery)

The files at the end depend on the inputs alone: an interrupted evaluation that goes on, and one on several processes,
ends with the same bytes (args.json, with its clocks, apart).
"""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np

from clip_vl.engine import dist, signals
from clip_vl.engine.errors import DataError, Interrupted, UserError
from clip_vl.engine.files import atomic_file, atomic_json, atomic_write
from clip_vl.engine.readers.json_files import read_object
from clip_vl.engine.readers.text import written
from clip_vl.engine.record import finite
from clip_vl.engine.run_folder import NOT_INPUTS, RunFolder
from clip_vl.engine.signals import StopRequest

SAMPLES = "samples.jsonl"


class EvaluationRun:
    """Every rank makes one; rank 0 writes.

    settings: a `RunSettings`, with output, overwrite and flags;  write_page: run folder -> path of its page
    """

    def __init__(self, program, settings, device, write_page):
        if not settings.output:
            raise UserError("--output names the folder for results; it is missing")
        self.folder, self.settings, self.program = Path(settings.output), settings, program
        self.write_page = write_page
        self.work, self.stop = self.folder / "work", StopRequest()
        self.inputs = None  # of `begin`
        self.files = RunFolder(settings.output, settings.flags, program, resume=not settings.overwrite,
                               overwrite=settings.overwrite, rank=dist.rank(), device=str(device),
                               wait=True)  # fmt: skip
        dist.barrier()

    def begin(self, inputs):
        """Whether this evaluation is finished already; UserError where the folder holds one of other inputs.

        inputs: JSON values that, with the flags, decide the numbers: digests of weights and of data
        """
        flags = {name: value for name, value in self.settings.flags.items() if name not in NOT_INPUTS}
        self.inputs = hashlib.sha256(json.dumps([flags, inputs], sort_keys=True, default=str).encode()).hexdigest()
        state = dist.gather(None if self.settings.overwrite or dist.rank() else self._before())[0]
        if state not in (None, self.inputs):
            raise UserError(f"{self.folder} holds an evaluation with other flags, weights or data: pass --overwrite to "
                            "replace it, or choose another --output")  # fmt: skip
        self.files.start()
        finished = dist.gather(state is not None and (self.folder / "result.json").is_file())[0]
        if dist.rank() == 0 and finished:
            self._finish_page()
        elif dist.rank() == 0:
            self.work.mkdir(exist_ok=True)
            atomic_json(self.work / "inputs.json", {"inputs": self.inputs})
        signals.release("interrupted; the same command goes on from what is kept")
        return finished

    def _finish_page(self):
        """What follows the result: the page, unless it was written before the evaluation was killed, and tidying up."""
        if not (self.folder / "report.html").is_file():
            self.write_page(self.folder)
        shutil.rmtree(self.work, ignore_errors=True)

    def _before(self):
        for path in (self.folder / "result.json", self.work / "inputs.json"):
            try:
                found = read_object(path)
            except DataError as error:
                raise DataError(f"{error} Pass --overwrite to replace it") from None
            if found is not None:
                return str(found.get("inputs", ""))
        return None

    def in_parts(self, name, count, compute):
        """[dict of arrays] of parts 0 .. count - 1 on rank 0, [] on others. `compute(part)` runs on all ranks together
        and gives rank 0 the arrays; a signal to stop takes effect between two parts.
        """
        here = {n for n in range(count) if self._path(name, n).is_file()} if dist.rank() == 0 else None
        for part in sorted(set(range(count)) - dist.gather(here)[0]):
            arrays = compute(part)
            if dist.rank() == 0:
                with atomic_file(self._path(name, part)) as file:
                    np.savez(file, **arrays)
            if any(dist.agree(int(bool(self.stop)))):
                raise Interrupted(
                    f"interrupted after part {part + 1} of {count} of the {name}; the same command goes on"
                )
        return [self._load(name, part) for part in range(count)] if dist.rank() == 0 else []

    def _path(self, name, part):
        return self.work / f"{name}_{part:05d}.npz"

    def _load(self, name, part):
        try:
            with np.load(self._path(name, part), allow_pickle=False) as arrays:
                size = sum(entry.file_size for entry in arrays.zip.infolist())
                if size > self._path(name, part).stat().st_size:
                    raise ValueError(f"it unpacks to {size:,} bytes, more than it has")
                return dict(arrays)
        except Exception as error:  # zipfile, zlib and NumPy have their own
            raise DataError(f"{self._path(name, part)} is damaged ({error}): remove it and start again") from None

    def finish(self, rows, result, gallery=None):
        """Rank 0 writes everything, the result last but for the page, and removes what was kept to go on from."""
        if dist.rank() == 0:
            try:
                text = "".join(json.dumps(finite(row), ensure_ascii=False) + "\n" for row in rows)
                atomic_write(self.folder / SAMPLES, written(text))
                if gallery:
                    atomic_json(self.folder / "gallery.json", gallery)
                atomic_json(
                    self.folder / "result.json", finite({"program": self.program, **result, "inputs": self.inputs})
                )
                self._finish_page()
            except OSError as error:
                raise UserError(f"cannot write to {self.folder}: {error.strerror}") from None
        dist.barrier()
