"""Running means kept on the device: nothing waits for them until a row of the log is written."""

import torch

from clip_vl.engine import dist


class Meters:
    """Weighted means of named numbers. `add` never leaves the device; `means` sums over ranks."""

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
