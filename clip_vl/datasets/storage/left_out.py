"""Reports what a reader leaves out of a source: how many items, for which reasons, and where the first one is."""

from clip_vl.engine import dist
from clip_vl.engine.errors import DataError


def report_left_out(source, reasons, kept, largest_share=1.0, noun="captions"):
    """Print how many items of a source are left out; DataError where they are more than a share of all its items.

    reasons: {reason: (number of items, location of the first or "")}; nothing is printed where there are none
    kept:    number of items of the same kind that are read
    """
    left_out = sum(number for number, _ in reasons.values())
    if not left_out:
        return
    counts = (f"{reason}: {number:,}{first and f', first {first}'}" for reason, (number, first) in reasons.items())
    sentence = f"{source}: {left_out:,} of {left_out + kept:,} {noun} are left out ({'; '.join(counts)})"
    if left_out > largest_share * (left_out + kept):
        raise DataError(f"{sentence}; at most a share of {largest_share:g} may be (--max_left_out)")
    dist.print0(f"warning: {sentence}")
