"""Running means kept on the device, and the rows of the log that training makes of them."""

import time

import torch

from clip_vl.engine import dist


class Meters:
    """Weighted means of named numbers. `add` never leaves the device, nor waits for it; `means` sums over ranks."""

    def __init__(self, device):
        self.device = device
        self.sums = {}  # name -> float64 (2,): weighted sum, weight

    def add(self, name, value, weight=1.0):
        """Add a scalar (tensor or number) with a weight (tensor or number); a weight of 0 adds nothing."""
        if name not in self.sums:
            self.sums[name] = torch.zeros(2, dtype=torch.float64, device=self.device)
        weight = torch.as_tensor(weight, dtype=torch.float64, device=self.device)
        value = torch.as_tensor(value, device=self.device).detach().double()
        value = torch.where(weight > 0, value, 0.0)
        self.sums[name] = self.sums[name] + torch.stack([value * weight, weight])  # a new one: `moment` keeps the old

    def means(self):
        """{name: mean over all that was added on all ranks}, without the names that only weights of 0 were added to.

        The ranks must have the same names.
        """
        names = sorted(self.sums)
        if not names:
            return {}
        totals = dist.sum_over_ranks(torch.stack([self.sums[name] for name in names]))
        return {name: (total / weight).item() for name, (total, weight) in zip(names, totals) if weight > 0}

    def clear(self):
        self.sums = {}

    def state(self, sums=None):
        """The sums as nested lists (exact: float64 survives JSON)."""
        return {name: pair.tolist() for name, pair in (self.sums if sums is None else sums).items()}

    def load_state(self, state):
        self.sums = {n: torch.tensor(pair, dtype=torch.float64, device=self.device) for n, pair in state.items()}


class StepLog:
    """Every `every` micro-batches a row of the log with the means of what was added since the last one.

    write:   function of keyword values, such as `RunFolder.log`
    samples: samples of a micro-batch on all processes
    """

    def __init__(self, write, device, every, samples):
        self.write, self.every, self.samples = write, every, samples
        self.meters, self.clock = Meters(device), time.perf_counter()

    def add(self, values, weights=None):
        """{name: scalar} of a micro-batch, and {name: weight} of those that are means of other numbers of targets."""
        for name, value in values.items():
            self.meters.add(name, value, (weights or {}).get(name, 1.0))

    def write_if_due(self, updater):
        """Write the row, on all ranks together; where no value is called `loss`, that is the sum of all of them."""
        if updater.micro_step % self.every:
            return
        means = self.meters.means()
        self.meters.clear()
        rates = {f"lr_{name}": rate for name, rate in updater.learning_rates().items()}
        total = {} if "loss" in means else {"loss": sum(means.values())}
        seconds = self.restart_clock()
        self.write(step=updater.update, epoch=updater.epoch + 1, **total, **means, **rates, skipped=updater.skipped,
                   samples=self.samples * self.every, seconds=seconds)  # fmt: skip

    def restart_clock(self):
        """Count the seconds of the next row from now on; those since the last time."""
        before, self.clock = self.clock, time.perf_counter()
        return self.clock - before
