"""Learning-rate schedules with a warm-up from 0, as functions update -> factor of the base learning rate."""

import math


def cosine(total, warmup_ratio):
    """Linear from 0 over the first `warmup_ratio * total` updates, then half a cosine to 0 at `total`."""
    warmup = int(total * warmup_ratio)

    def factor(update):
        if update < warmup:
            return update / max(1, warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (update - warmup) / max(1, total - warmup))))

    return factor


def linear_to(total, warmup_ratio, end):
    """The same warm-up, then linear down to `end` (a factor) at `total`, and `end` from there on."""
    warmup = int(total * warmup_ratio)

    def factor(update):
        if update < warmup:
            return update / max(1, warmup)
        return end + (1 - end) * max(0.0, 1 - (update - warmup) / max(1, total - warmup))

    return factor
