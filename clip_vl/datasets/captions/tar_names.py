"""Names of tar shards with a range of numbers in braces."""

import itertools
import re

from clip_vl.engine.errors import UserError

MAX_SHARDS = 100_000


def expand_braces(spec):
    """`s-{08..10}.tar` -> s-08.tar, s-09.tar, s-10.tar, as shells do."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", spec)
    if match is None:
        return [spec]
    first, last = int(match[1]), int(match[2])
    if last - first >= MAX_SHARDS:
        raise UserError(f"{spec!r:.80} names more than {MAX_SHARDS:,} shards")
    width = len(match[1]) if match[1].startswith("0") else 0
    names = (f"{spec[: match.start()]}{number:0{width}d}{spec[match.end() :]}" for number in range(first, last + 1))
    return list(itertools.chain.from_iterable(map(expand_braces, names)))
