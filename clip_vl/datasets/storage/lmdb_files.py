"""LMDB folders opened for reading, each once per process, and held to their length."""

import os
from pathlib import Path

from clip_vl.engine.errors import DataError

MAP_SIZE = 4 * 2**40  # bytes of address space of a writer, not of disk

_readers = {}  # path -> (process id, environment): LMDB lets a process open a file once


def open_reader(path):
    """The read-only environment at `path`, opened once per process; a forked worker must not use its parent's.

    Raises lmdb.Error where there is none, DataError where its file was cut short.
    """
    import lmdb

    path = Path(path)
    process, environment = _readers.get(path, (None, None))
    if process != os.getpid():
        if environment is not None:
            environment.close()  # the parent's, inherited
        # Without locks: the LMDB may lie on a read-only disk, and a writer only ever adds to it.
        environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        _readers[path] = os.getpid(), environment
        try:
            check_length(path, environment)
        except DataError:
            close_reader(path)
            raise
    return environment


def close_reader(path):
    """Close the environment of `open_reader`, if it is open: before the file is opened for writing or has grown."""
    _, environment = _readers.pop(Path(path), (None, None))
    if environment is not None:
        environment.close()


def check_length(path, environment):
    """Raise DataError where the file is cut short: reading a map past the end of its file kills the process."""
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    found = Path(path, "data.mdb").stat().st_size
    if found < expected:
        raise DataError(f"{path}/data.mdb has {found:,} of its {expected:,} bytes; copy it again or build it anew")
