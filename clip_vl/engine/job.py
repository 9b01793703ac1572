"""What the loop of a training program holds in its hands: the run folder, the model and its updater, the log's sums."""

import threading
import time
from dataclasses import asdict

from clip_vl.engine import dist, signals
from clip_vl.engine.errors import Interrupted, ProgramError, printable
from clip_vl.engine.files import atomic_json, unwritten
from clip_vl.engine.meters import Meters
from clip_vl.engine.resume import Moment, restore_training, save_training
from clip_vl.engine.run import Run
from clip_vl.engine.signals import StopRequest


class Job:
    """A run in progress. The program sets `model` and `updater` once they are built, and whatever else it needs.

    args: the program's flags, from which the run folder takes output, resume and overwrite
    """

    def __init__(self, program, args, device):
        writer = dist.rank() if not args.dry_run else -1  # a dry run leaves nothing behind
        self.args, self.device = args, device
        self.stop, self.meters, self.clock = StopRequest(), Meters(device), time.perf_counter()
        self.run = Run(args.output, asdict(args), program, args.resume, args.overwrite, writer, str(device),
                       wait=True)  # fmt: skip
        self.model = self.updater = None
        self.beside = {}  # modules whose state a checkpoint holds beside the model's, such as a loss with a queue
        self.data = {}  # {flag or file: digest} of what is trained and validated on; a resumed run must have the same
        self.settings = None  # of the model, as JSON values, where more than the flags says what it is
        self._updating = threading.Lock()  # held while weights change, and while they are written
        self._last = None  # the moment after the last update that no checkpoint holds yet, and its position

    def watch_data(self, **digests):
        """Note what is trained and validated on: {flag: digest, {name: digest}, or None for nothing}."""
        for flag, digest in digests.items():
            named = digest if isinstance(digest, dict) else {"": digest}
            self.data |= {f"{flag} {name}".strip(): value for name, value in named.items() if value}

    def accumulation(self, done, batches):
        """For micro-batch `done` (from 1) of `batches`: is it the last of its update, and how many does that have?"""
        steps = self.args.gradient_accumulation_steps
        return done % steps == 0 or done == batches, min(steps, batches - (done - 1) // steps * steps)

    def report(self, epoch, total=False):
        """Every --report_step micro-batches a row of the log with the means since the last one.

        total: add their sum as `loss`
        """
        args, updater = self.args, self.updater
        if updater.micro_step % args.report_step:
            return
        means = self.meters.means()
        self.meters.clear()
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        rates = {f"lr_{name}": rate for name, rate in updater.learning_rates().items()}
        row = {"step": updater.update, "epoch": epoch + 1} | ({"loss": sum(means.values())} if total else {})
        samples = args.batch_size * dist.world_size() * args.report_step
        self.run.log(**row, **means, **rates, skipped=updater.skipped, samples=samples, seconds=seconds)

    def step(self, names):
        """Update the weights; whether a signal asks, on any rank, to stop.

        names: function -> some names of the samples at hand, for the warning about an update that is not finite
        """
        if not self.args.dry_run:
            signals.hold(self._rescue)
        with self._updating:
            norm, (stop,) = self.updater.step(int(bool(self.stop)))
            self._last = None
        if norm is None:
            skipped = f"update {self.updater.update} skipped: loss or gradient not finite"
            print(printable(f"warning: {skipped}; samples {names()}..."), flush=True)
        return stop

    def save(self, **position):
        """A resumable checkpoint. position: JSON values that say where training stands, such as epoch=, batch=."""
        if self.args.dry_run:
            return
        if position.get("batch") == 0 and any(dist.agree(len(unwritten))):  # --resume shall write the epoch's weights
            if self._last is None:
                return
            position = self._last[0]
        with self._updating:
            saved = self._save(**position)
        (failed,) = dist.agree(int(not saved))  # nobody leaves while rank 0 is writing
        update = self.updater.update
        self._last = (position, Moment.now(self.run, self.updater, self.meters)) if failed else None
        if not failed:
            signals.release(f"interrupted at update {update} and saved; add --resume to go on")
        elif self.stop:
            raise ProgramError(self._not_saved(update))

    def save_if_due(self, stop, **position):
        """Save every --checkpoint_steps updates, or when a signal asked to stop, and then do."""
        update = self.updater.update
        if stop or update % self.args.checkpoint_steps == 0:
            self.save(**position)
        else:
            self._last = position, Moment.now(self.run, self.updater, self.meters)
        if stop:
            raise Interrupted(f"interrupted at update {update} and saved; add --resume to go on")

    def _save(self, **position):
        return save_training(self.run, self.model, self.updater, self.meters, self.args, self.beside, self.data,
                             settings=self.settings, **position)  # fmt: skip

    def _not_saved(self, update):
        return f"interrupted at update {update}, which could not be saved; --resume goes on from an older checkpoint"

    def _rescue(self):
        """Save the last update while the main thread is stuck after it -> exit code and sentence."""
        if dist.rank() != 0:
            time.sleep(30)  # rank 0 saves for all
            return Interrupted.exit_code, "stopped, because rank 0 did"
        while not (self._updating.acquire() and self._last):  # an update is under way, which ends with the main thread
            self._updating.release()
            time.sleep(0.1)
        (position, moment), update = self._last, self.updater.update
        if not self._save(moment=moment, **position):
            return ProgramError.exit_code, self._not_saved(update)
        return Interrupted.exit_code, f"interrupted at update {update} and saved; add --resume to go on"

    def until_stopped(self, batches):
        """Yield the batches of a validation, unless a signal asks to stop and the checkpoint before it failed."""
        for batch in batches:
            if self.stop:  # a signal would have raised already, were anything saved
                raise ProgramError(self._not_saved(self.updater.update))
            yield batch

    def restore(self):
        """The position of the newest whole checkpoint, everything brought to it; None when there is none."""
        return restore_training(
            self.run, self.model, self.updater, self.meters, self.args, self.beside, self.data
        )

    def log(self, epoch, **values):
        """A row of the log that took time of its own, such as a validation."""
        self.run.log(step=self.updater.update, epoch=epoch + 1, **values)
        self.clock = time.perf_counter()

    def write_gallery(self, build):
        """gallery.json, the pictures of the report; `build` is called on rank 0 alone. A full disk costs them alone."""
        if dist.rank() == 0:
            try:
                atomic_json(self.run.folder / "gallery.json", build())
            except OSError as error:
                print(f"warning: no gallery.json: {error.strerror}; the report lacks its pictures", flush=True)
