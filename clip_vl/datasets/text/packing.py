"""Lines of token ids packed into blocks of a fixed length: <name>.bin (int32 ids) and <name>.idx (int64 pairs)."""

from pathlib import Path

import numpy as np

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_file


def pack(lines, length):
    """Yield blocks (int32 arrays) of at most `length` tokens, from arrays of token ids.

    Short lines are appended to the open block while they fit. A line of `length` or more closes it and is cut into
    blocks of its own, of which the last may be short.
    """
    open_block = []
    for line in lines:
        line = np.asarray(line, np.int32)
        if len(line) >= length:
            yield from _closed(open_block)
            open_block = []
            yield from (line[first : first + length] for first in range(0, len(line), length))
        else:
            if sum(map(len, open_block)) + len(line) > length:
                yield from _closed(open_block)
                open_block = []
            open_block.append(line)
    yield from _closed(open_block)


def _closed(block):
    return [np.concatenate(block)] if sum(map(len, block)) else []


def write_packed(stem, lines, length):
    """Write <stem>.bin and <stem>.idx, whole or not at all -> number of blocks."""
    stem, entries, offset = Path(stem), [], 0
    with atomic_file(stem.with_name(f"{stem.name}.bin")) as file:
        for block in pack(lines, length):
            file.write(block.tobytes())
            entries.append((offset, len(block)))
            offset += block.nbytes
    with atomic_file(stem.with_name(f"{stem.name}.idx")) as file:
        file.write(np.array(entries, np.int64).reshape(-1, 2).tobytes())
    return len(entries)


class PackedText:
    """The blocks of <stem>.bin and <stem>.idx, read through memory maps: `packed[i]` -> int32 token ids."""

    def __init__(self, stem):
        stem = Path(stem)
        binary, index = (stem.with_name(f"{stem.name}{ending}") for ending in (".bin", ".idx"))
        for path in (binary, index):
            if not path.is_file():
                raise UserError(f"{path} is missing: `python -m clip_vl.prepare` packs text into .bin and .idx")
        if index.stat().st_size % 16 or binary.stat().st_size % 4 or not index.stat().st_size:
            raise DataError(f"{index} or {binary.name} is cut off: pack the text again")
        self.index = np.fromfile(index, np.int64).reshape(-1, 2)
        self.tokens = np.memmap(binary, np.int32, "r")
        if (self.index < 0).any() or (self.index[:, 0] // 4 + self.index[:, 1] > len(self.tokens)).any():
            raise DataError(f"{index} points outside of {binary.name}: pack the text again")

    def __len__(self):
        return len(self.index)

    def __getitem__(self, i):
        first, length = self.index[i]
        return np.array(self.tokens[first // 4 : first // 4 + length])


def clean_lines(lines):
    """Without what OpenWebText's preparation drops: empty lines, lines with NUL, and lines of `---`."""
    for line in lines:
        line = line.strip()
        if line and "\0" not in line and line != "---":
            yield line
