"""A training run: its folder, where it stands, and the protocol that the loop of a training program follows.

    run = open_run("vqa", args.run(), device, write_report)
    updater = run.start(model, optimizers, args.steps(), batches=len(order))   # wraps, restores; knows --dry_run

    for epoch in run.epochs():
        for batch in run.batches(order.epoch(epoch), load):   # goes on in the middle of an epoch; saves; stops
            with updater.forward():
                loss = ...
            updater(loss, {"loss": loss})                     # backward, log row, finite check, clipping, step
        run.save()                                            # an interrupted validation goes on from here
        report = evaluate(updater.model, valid_loader)
        run.log(epoch, **report)
        run.keep(report, score="accuracy")                    # the best so far, and its gallery
    run.finish(task="vqa", split="minival", **run.best)       # result.json and report.html

A checkpoint is written at each epoch's end, every --checkpoint_steps updates, and where a signal asks to stop.
"""

import contextlib
import resource
import threading
import time
from dataclasses import dataclass, field

import torch

from clip_vl.engine import dist, signals
from clip_vl.engine.errors import Finished, Interrupted, ProgramError
from clip_vl.engine.files import atomic_json, unwritten
from clip_vl.engine.meters import StepLog
from clip_vl.engine.optim import Updater, autocast_dtype
from clip_vl.engine.random import seed_step
from clip_vl.engine.resume import Moment, restore_training, save_training
from clip_vl.engine.run_folder import RunFolder
from clip_vl.engine.signals import StopRequest


@dataclass(frozen=True)
class RunSettings:
    """Where a run writes, and when.

    flags: every flag by its name, for args.json
    """

    output: str
    seed: int = 0
    resume: bool = False
    overwrite: bool = False
    allow_changed_data: bool = False
    keep_last: int = 2
    checkpoint_steps: int = 1000
    report_step: int = 200
    dry_run: bool = False
    flags: dict = field(default_factory=dict)


def open_run(program, settings, device, write_page):
    """The `Run` of a program; random draws that follow, such as first weights, are the same on every rank.

    settings: a `RunSettings`;  write_page: run folder -> path of the page that it writes there
    """
    seed_step(settings.seed, 0, 0)
    return Run(program, settings, device, write_page)


class Run:
    """A training run in progress.

    folder: its path;  epoch: the epoch that it is in;  batch: micro-batches of that epoch which are done
    best:   the report that result.json will hold: of the best epoch by its score, or else of the latest
    """

    def __init__(self, program, settings, device, write_page):
        writer = dist.rank() if not settings.dry_run else -1  # a dry run leaves nothing behind
        self.settings, self.device, self.write_page = settings, device, write_page
        self.stop = StopRequest()
        self.files = RunFolder(settings.output, settings.flags, program, settings.resume, settings.overwrite, writer,
                               str(device), wait=True)  # fmt: skip
        self.folder = self.files.folder
        self.data = {}  # {flag or file: digest} of what is trained and validated on; a resumed run must have the same
        self.epoch = self.batch = 0
        self.best = {}
        self.updater = self.step_log = self.steps = None  # of `start`
        self.updates = 0
        self.beside, self.model_settings = {}, None
        self._updating = threading.Lock()  # held while weights change, and while they are written
        self._last = None  # the moment after the last update that no checkpoint holds yet, and its position

    def watch_data(self, **digests):
        """Note, before `start`, the data of training and validation: {flag: digest, {name: digest}, or None}."""
        for flag, digest in digests.items():
            named = digest if isinstance(digest, dict) else {"": digest}
            self.data |= {f"{flag} {name}".strip(): value for name, value in named.items() if value}

    def start(self, model, optimizers, steps, *, batches, updates=None, first_update=0, name_of=str, beside=None,
              moved=(), settings=None):  # fmt: skip
        """The `Updater` of a model, wrapped for several processes and brought to the newest checkpoint of the run.

        optimizers:   {name: (optimizer, update -> factor of its learning rates)};  steps: a `StepSettings`
        batches:      micro-batches of an epoch;  updates: those of the whole run, if not of all batches of all epochs
        first_update: where the schedules of a run without checkpoint begin
        name_of:      row -> the sample's name, for the warning about an update that is not finite
        beside:       {name: module} whose state a checkpoint holds beside the model's, such as a loss with a queue
        moved:        those of them whose state the forward pass moves: a skipped update leaves it as it was
        settings:     of the model, as JSON values that the weights in a checkpoint hold, where flags do not say enough
        """
        self.steps, self.beside, self.model_settings = steps, beside or {}, settings
        self.updates = steps.last_epoch * steps.updates_per_epoch(batches) if updates is None else updates
        samples = steps.batch_size * dist.world_size()
        self.step_log = StepLog(self.files.log, self.device, self.settings.report_step, samples)
        self.updater = Updater(
            dist.wrap(model, self.device), optimizers, device=self.device,
            dtype=autocast_dtype(self.device, steps.bf16, steps.fp16), max_grad_norm=steps.max_grad_norm,
            max_skipped=steps.max_skipped, seed=self.settings.seed, beside=moved, log=self.step_log, stop=self.stop,
            name_of=name_of, guard=self._update_under_way,
        )  # fmt: skip
        self.updater.update = first_update
        self._restore()
        return self.updater

    def _restore(self):
        if self.settings.dry_run:
            return
        position = restore_training(
            self.files, self.updater, self.step_log.meters, self.beside, flags=self.settings.flags, data=self.data,
            allow_changed_data=self.settings.allow_changed_data,
        )  # fmt: skip
        position = position or {"epoch": self.steps.first_epoch, "batch": 0}
        self.epoch, self.batch = position["epoch"], position["batch"]
        self.best = position.get("best", position.get("result", {}))  # the second is the name in older checkpoints

    def epochs(self):
        """The epochs that are left, counted from 0; after each a resumable checkpoint."""
        last = max(1, self.steps.last_epoch) if self.settings.dry_run else self.steps.last_epoch
        while self.epoch < last:
            yield self.epoch
            self.epoch, self.batch = self.epoch + 1, 0
            self.save()

    def batches(self, rows, load, most=None):
        """Yield the micro-batches of this epoch that are left, in training mode, and save where it is due.

        rows: (N, ...), what each micro-batch holds;  load: (epoch, rows) -> their batches on the device
        most: micro-batches at most
        raises: Interrupted after saving, where a signal asked to stop; Finished after the two updates of a dry run
        """
        if self.settings.dry_run:
            yield from self._two_updates(rows[: self.steps.accumulate], load)
        yield from self._batches(rows[:most], load)

    def _batches(self, rows, load):
        steps = self.steps.accumulate
        self.updater.model.train()
        for index, batch in enumerate(load(self.epoch, rows[self.batch :]), self.batch):
            self.batch = index
            first = index // steps * steps  # of this update
            is_last = index + 1 in (first + steps, len(rows))
            self.updater.begin(batch["rows"], self.epoch, is_last, min(steps, len(rows) - first))
            yield batch
            self.batch = index + 1
            if is_last:
                self._save_if_due()

    def _two_updates(self, rows, load):
        """--dry_run: the first update twice, and what the whole run will need; the first time warms up.

        Validation is not in the estimate. Memory is this process's and, with loader workers, each worker's largest.
        """
        yield from self._batches(rows, load)
        self.batch, began = 0, time.perf_counter()
        yield from self._batches(rows, load)
        seconds = time.perf_counter() - began
        host, workers = (resource.getrusage(who).ru_maxrss / 2**20  # KiB
                         for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))  # fmt: skip
        on_gpu = self.device.type == "cuda"
        gpu = f", GPU {torch.cuda.max_memory_allocated(self.device) / 2**30:.1f} GiB" if on_gpu else ""
        hours = seconds * self.updates / 3600
        dist.print0(f"dry run: two updates trained on {self.device}, nothing saved")
        dist.print0(f"memory: process {host:.1f} GiB, largest loader worker {workers:.1f} GiB{gpu}")
        dist.print0(f"duration: {seconds:.2f} s per update, {self.updates:,} updates, {hours:.2f} hours")
        raise Finished

    @contextlib.contextmanager
    def _update_under_way(self):
        """Weights change inside; from here on a signal is only noted, because updates are unsaved."""
        if not self.settings.dry_run:
            signals.hold(self._rescue)
        with self._updating:
            yield
            self._last = None

    def _save_if_due(self):
        update, stopped = self.updater.update, self.updater.stopped
        if stopped or update % self.settings.checkpoint_steps == 0:
            self.save()
        else:
            self._last = self._position(), Moment.now(self.files, self.updater, self.step_log.meters)
        if stopped:
            raise Interrupted(_saved(update))

    def save(self):
        """A resumable checkpoint of where training stands, on all ranks together."""
        if self.settings.dry_run:
            return
        position = self._position()
        if self.batch == 0 and any(dist.agree(len(unwritten))):  # --resume shall write the epoch's weights
            if self._last is None:
                return
            position = self._last[0]
        with self._updating:
            saved = self._save(position)
        (failed,) = dist.agree(int(not saved))  # nobody leaves while rank 0 is writing
        update = self.updater.update
        self._last = (position, Moment.now(self.files, self.updater, self.step_log.meters)) if failed else None
        if not failed:
            signals.release(_saved(update))
        elif self.stop:
            raise ProgramError(_not_saved(update))

    def _position(self):
        return {"epoch": self.epoch, "batch": self.batch, "best": self.best}

    def _save(self, position, moment=None):
        return save_training(
            self.files, self.updater, self.step_log.meters, self.beside, position, flags=self.settings.flags,
            keep_last=self.settings.keep_last, data=self.data, settings=self.model_settings, moment=moment,
        )  # fmt: skip

    def _rescue(self):
        """Save the last update while the main thread is stuck after it -> exit code and sentence."""
        if dist.rank() != 0:
            time.sleep(30)  # rank 0 saves for all
            return Interrupted.exit_code, "stopped, because rank 0 did"
        while not (self._updating.acquire() and self._last):  # an update is under way, which ends with the main thread
            self._updating.release()
            time.sleep(0.1)
        (position, moment), update = self._last, self.updater.update
        if not self._save(position, moment):
            return ProgramError.exit_code, _not_saved(update)
        return Interrupted.exit_code, _saved(update)

    def log(self, epoch, **values):
        """A row of the log that took time of its own, such as a validation."""
        self.files.log(step=self.updater.update, epoch=epoch + 1, **values)
        self.step_log.restart_clock()

    def keep(self, report, score=None, gallery=None):
        """Whether an epoch's report is the best so far by its `score`, or without one: it then becomes `best`.

        gallery: () -> gallery.json, the images of the report page; called on rank 0 alone
        """
        is_best = score is None or report[score] > self.best.get(score, -1)
        if is_best:
            self.best = report | {"epoch": self.epoch + 1}
            if gallery and dist.rank() == 0:
                self._write_gallery(gallery)
        return is_best

    def _write_gallery(self, gallery):
        try:
            atomic_json(self.folder / "gallery.json", gallery())
        except OSError as error:
            print(f"warning: no gallery.json: {error.strerror}; the report lacks its pictures", flush=True)

    def finish(self, **result):
        """result.json, and the page."""
        self.files.write_result(**result)
        if dist.rank() == 0:
            print(f"report: {self.write_page(self.folder)}")


def _saved(update):
    return f"interrupted at update {update} and saved; add --resume to go on"


def _not_saved(update):
    return f"interrupted at update {update}, which could not be saved; --resume goes on from an older checkpoint"
