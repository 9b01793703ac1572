"""Locks on folders: one writer at a time, and nothing left behind by a process that was killed."""

import fcntl
import os
from contextlib import contextmanager, suppress
from pathlib import Path

from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import TEMPORARY


@contextmanager
def hold(root):
    """Keep a data root to this process, and clear away what a killed one left half-written in it."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        if not is_locked(descriptor):
            raise UserError(f"another process is preparing {root}; wait until it is done")
        image_folders = {str(Path(task.collection.sizes).parent) for task in TASKS.values()}
        for folder in ("", "lxmert", "vqa", "mscoco", *TASKS, *image_folders):
            for leftover in Path(root, folder).glob(f"{TEMPORARY}*"):
                with suppress(OSError):  # a read-only data root can still be looked at
                    leftover.unlink()
        yield
    finally:
        os.close(descriptor)


def is_locked(descriptor):
    """Whether this process now has the lock on an open folder; there is no lock file that could be left behind."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True
