"""Tables on disk as one .npy file per column: written in pieces, read as memory maps that all processes share."""

from collections.abc import Sequence
from itertools import accumulate, chain
from pathlib import Path

import numpy as np

from clip_vl.engine.errors import DataError


class ColumnWriter:
    """A one-dimensional .npy file of numbers that is extended on disk and not kept in memory."""

    def __init__(self, folder, name, dtype):
        self.dtype, self.length = np.dtype(dtype), 0
        self.file = (Path(folder) / f"{name}.npy").open("wb")
        self._write_header()
        self.header_bytes = self.file.tell()

    def extend(self, values):
        """Append numbers that fit the dtype (NumPy raises OverflowError for others)."""
        self.file.write(np.array(values, dtype=self.dtype).tobytes())
        self.length += len(values)

    def close(self):
        self.file.seek(0)
        self._write_header()
        if self.file.tell() != self.header_bytes:
            raise RuntimeError("NumPy no longer reserves space in .npy headers for a longer shape")
        self.file.close()

    def _write_header(self):
        header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self.file, header)


class WordWriter(ColumnWriter):
    """Words of a small vocabulary, stored as indices into `words`, to which new words are appended."""

    def __init__(self, folder, name, dtype):
        super().__init__(folder, name, dtype)
        self.name, self.index = name, {}

    @property
    def words(self):
        return list(self.index)

    def extend(self, values):
        rows = [self.index.setdefault(word, len(self.index)) for word in values]
        room = np.iinfo(self.dtype).max + 1
        if len(self.index) > room:
            raise DataError(f"there are more than {room:,} different values of {self.name!r}")
        super().extend(rows)


class RaggedWriter:
    """Rows of numbers, concatenated in `<name>.npy`; row i is [offsets[i], offsets[i + 1]), in `<name>_offsets.npy`."""

    def __init__(self, folder, name, dtype):
        self.values = ColumnWriter(folder, name, dtype)
        self.offsets = ColumnWriter(folder, f"{name}_offsets", np.int64)
        self.offsets.extend([0])

    def extend(self, rows):
        ends = accumulate(map(len, rows), initial=self.values.length)
        self.offsets.extend(list(ends)[1:])
        self.values.extend(self._joined(rows))

    def _joined(self, rows):
        return list(chain.from_iterable(rows))

    def close(self):
        self.values.close()
        self.offsets.close()


class TextWriter(RaggedWriter):
    """Strings, as rows of UTF-8 bytes; other bytes of file names are kept."""

    def extend(self, rows):
        super().extend([text.encode("utf-8", "surrogateescape") for text in rows])

    def _joined(self, rows):
        return np.frombuffer(b"".join(rows), dtype=np.uint8)


def read_column(folder, name):
    """A column as a read-only array over a memory map."""
    return np.asarray(np.load(Path(folder) / f"{name}.npy", mmap_mode="r", allow_pickle=False))


class RaggedColumn(Sequence):
    """The rows of a RaggedWriter: row i as a read-only array."""

    def __init__(self, folder, name):
        self.values, self.offsets = read_column(folder, name), read_column(folder, f"{name}_offsets")

    def __len__(self):
        return len(self.offsets) - 1

    def __getitem__(self, row):
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        return self.values[self.offsets[row] : self.offsets[row + 1]]


class TextColumn(RaggedColumn):
    """The rows of a TextWriter: row i as a str."""

    def __getitem__(self, row):
        return super().__getitem__(row).tobytes().decode("utf-8", "surrogateescape")
