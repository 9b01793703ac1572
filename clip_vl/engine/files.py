"""Files that are whole or absent: written under a temporary name beside the target, synced, then renamed.

A reader never meets half a file, whatever moment the writer is killed at, and a full disk leaves the old content.
"""

import errno
import fcntl
import json
import os
import secrets
from contextlib import contextmanager
from pathlib import Path

from clip_vl.engine.readers.text import written

SETTINGS_KEY = "clip_vl_settings"  # of a model's settings in the metadata of its file
TEMPORARY = ".tmp-"  # how names begin while something is being written
unwritten = {}  # path -> why its newest content could not be written although the program went on


def temporary_name(path):
    """A fresh name beside `path`; whoever finds it without a living writer may delete it."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")


def sync_folder(folder):
    """Make renames inside `folder` survive a power cut; file systems that cannot sync folders are left in peace."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path, durable=True):
    """Open a binary file that takes the name `path` when the block ends and vanishes when the block raises.

    durable: whether it is on the disk by then; not so, a power cut may empty it, until the caller's os.sync()
    """
    path = Path(path)
    temporary = temporary_name(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    if durable:
        sync_folder(path.parent)


def atomic_write(path, data, durable=True):
    """Write bytes; `path` then holds all of `data`, or its old content if this raises OSError (a full disk, say)."""
    with atomic_file(path, durable) as file:
        file.write(data)


def atomic_json(path, value):
    """Write `value` as indented UTF-8 JSON."""
    atomic_write(path, written(json.dumps(value, indent=1, ensure_ascii=False) + "\n"))


def try_lock(descriptor):
    """Whether this process now holds the lock of an open file or folder; the kernel releases it when the process ends.

    True on a file system without locks as well: there a folder is taken to have one writer.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
