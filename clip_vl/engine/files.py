"""Atomic files: written under a temporary name beside the target, synced, then renamed.

A reader never sees half a file, whenever the writer is killed, and on a full disk the old content is kept.
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
TEMPORARY = ".tmp-"  # prefix of the names of unfinished files
unwritten = {}  # path -> reason why its newest content could not be written, while the program continued


def temporary_name(path):
    """A new name beside `path`; the file may be deleted when its writer has ended."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(4)}-{path.name}")


def sync_folder(folder):
    """Make renames inside `folder` survive a power cut; does nothing on file systems that cannot sync folders."""
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
    """Open a binary file that gets the name `path` when the block ends, and is deleted when the block raises.

    durable: sync it to the disk; without, a power cut before the caller's os.sync() may empty it
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
    """Write bytes; `path` then holds all of `data`, or its old content if this raises OSError, as on a full disk."""
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
