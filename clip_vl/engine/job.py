"""What the loop of a training program holds in its hands: the run folder, the model and its updater, the log's sums."""

import time
from dataclasses import asdict

from clip_vl.engine import dist
from clip_vl.engine.errors import Interrupted, printable
from clip_vl.engine.files import atomic_json
from clip_vl.engine.meters import Meters
from clip_vl.engine.resume import restore_training, save_training
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
        self.run = Run(args.output, asdict(args), program, args.resume, args.overwrite, writer, str(device))
        self.model = self.updater = None
        self.beside = {}  # modules whose state a checkpoint holds beside the model's, such as a loss with a queue

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
        norm, (stop,) = self.updater.step(int(bool(self.stop)))
        if norm is None:
            skipped = f"update {self.updater.update} skipped: loss or gradient not finite"
            print(printable(f"warning: {skipped}; samples {names()}..."), flush=True)
        return stop

    def save(self, **position):
        """A resumable checkpoint. position: JSON values that say where training stands, such as epoch=, batch=."""
        if self.args.dry_run:
            return
        save_training(self.run, self.model, self.updater, self.meters, self.args, self.beside, **position)

    def save_if_due(self, stop, **position):
        """Save every --checkpoint_steps updates, or when a signal asked to stop, and then do."""
        update = self.updater.update
        if stop or update % self.args.checkpoint_steps == 0:
            self.save(**position)
        if stop:
            raise Interrupted(f"interrupted at update {update} and saved; add --resume to go on")

    def until_stopped(self, batches):
        """Yield the batches of a validation, unless a signal asks to stop: what was saved before it is enough."""
        for batch in batches:
            if self.stop:
                raise Interrupted("interrupted in the validation, before which it was saved; add --resume to go on")
            yield batch

    def restore(self):
        """The position of the newest whole checkpoint, everything brought to it; None when there is none."""
        return restore_training(self.run, self.model, self.updater, self.meters, self.args, self.beside)

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
