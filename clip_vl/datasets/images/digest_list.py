"""The sha256 of every image file: most damaged JPEGs decode without an error, to another image.

A list has a line for each image, sorted by name, in the form of `sha256sum`, which can check it too:

    cd <data root> && sha256sum --quiet --check mscoco/image_sha256.txt
"""

import hashlib
import itertools
import mmap
import os
import re
from array import array
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from clip_vl.datasets.storage.cache import sha256
from clip_vl.engine.errors import DataError
from clip_vl.engine.files import atomic_write

SHA256, NAME = 64, 66  # positions in a line: end of the digest, start of the name
LINE = re.compile(rb"([0-9a-f]{64})  ([^\n]+)\n")
BLOCK = 4096  # files per write: the most whose digests an interruption can lose


class DigestList:
    """The recorded digests of images, memory-mapped: loader workers share its pages.

    raises: DataError with the line number, for a list that was cut short or damaged
    """

    def __init__(self, path):
        self.path = Path(path)
        with self.path.open("rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise DataError(f"{path} is empty; delete it, and `python -m clip_vl.prepare digests` writes it anew")
            self.text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self.starts = array("Q", itertools.accumulate(map(len, self._checked_lines()), initial=0))

    def __reduce__(self):
        return DigestList, (self.path,)

    def _checked_lines(self):
        before = b""
        for number, line in enumerate(iter(self.text.readline, b""), start=1):
            match = LINE.fullmatch(line)
            if match is None or match[2] <= before:
                raise DataError(
                    f"{self.path}:{number}: a sha256, two spaces and a name were expected, sorted by name; delete the "
                    "list, and `python -m clip_vl.prepare digests` writes it anew"
                )
            before = match[2]
            yield line

    def _name(self, index):
        """The name on a line, counted from 0."""
        return self.text[self.starts[index] + NAME : self.starts[index + 1] - 1]

    def complaint(self, name, data):
        """The reason why `data` is not the recorded content of the file `name`; None where it is.

        name: path below the data root
        """
        key = os.fsencode(name)
        index = bisect_left(range(len(self.starts) - 1), key, key=self._name)
        if index == len(self.starts) - 1 or self._name(index) != key:
            return f"is not in {self.path}; `python -m clip_vl.prepare digests` adds what is new"
        start = self.starts[index]
        if hashlib.sha256(data).hexdigest().encode() != self.text[start : start + SHA256]:
            return (
                f"does not have the content that was recorded: its digest differs from the one in {self.path}; fetch "
                "it again, or delete its line there if the change is intended"
            )
        return None


def record_digests(path, root, names, workers=4, advance=lambda count: None):
    """Add the digests of image files, `names` below the root, to the list at `path`; its entries are kept.

    The list is replaced as a whole at the end. Until then new digests are in <path>.part, so that a repeat continues.
    `advance(1)` is called for every file.
    returns: the number of new digests, and {name: reason} of the files that cannot be read
    raises:  OSError where the list cannot be written, DataError where it is damaged
    """
    path, part = Path(path), Path(f"{path}.part")
    known, unreadable = {}, {}
    if path.exists():
        known = _entries(DigestList(path).text[:])
    before = len(known)
    with part.open("a+b") as file, ThreadPoolExecutor(workers) as pool:
        file.seek(0)
        known |= (done := _entries(file.read()))
        file.truncate(sum(len(_line(*entry)) for entry in done.items()))  # without the half line of a killed writer
        new = [name for name in map(os.fsencode, names) if name not in known]
        advance(len(names) - len(new))
        for start in range(0, len(new), BLOCK):
            block = new[start : start + BLOCK]
            for name, digest in zip(block, pool.map(lambda name: _digest(Path(root, os.fsdecode(name))), block)):
                if isinstance(digest, OSError):
                    unreadable[os.fsdecode(name)] = digest.strerror
                else:
                    known[name] = digest
                    file.write(_line(name, digest))
                advance(1)
            file.flush()
    if len(known) > before:
        atomic_write(path, b"".join(_line(*entry) for entry in sorted(known.items())))
    part.unlink()
    return len(known) - before, unreadable


def _digest(path):
    try:
        return sha256(path).encode()
    except OSError as error:
        return error


def _line(name, digest):
    return digest + b"  " + name + b"\n"


def _entries(text):
    """{name: digest} of the whole lines at the start of a list."""
    entries = {}
    for line in text.split(b"\n")[:-1]:
        if (match := LINE.fullmatch(line + b"\n")) is None:
            break
        entries[match[2]] = match[1]
    return entries
