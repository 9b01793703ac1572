"""Digests of input files, stored beside the caches, so that 1.4 GB of annotations are not hashed at every start."""

import contextlib
import time
from pathlib import Path

from clip_vl.datasets.storage.cache import locked, sha256, user_root, writable_root
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_json
from clip_vl.engine.readers.json_files import parse_json

MEMORY = "digests.json"
RACY_SECONDS = 2.0  # a file changed this recently may change again within one tick of its modification time


def file_digest(path, cache_root):
    """sha256 of a file, stored beside the caches under (path, size, modification time, inode).

    A change of the content that keeps all of these is not noticed.
    """
    path = Path(path).resolve()
    try:
        state = _state(path)
        for root in (Path(cache_root), user_root(cache_root)):
            *known, digest = _remembered(root / MEMORY).get(str(path), [None])
            if known == state:
                return digest
        digest = sha256(path)
        if _state(path) != state:
            raise DataError(f"{path} changed while it was read; wait until it is whole")
    except FileNotFoundError:
        raise UserError(f"{path} is missing; `python -m clip_vl.prepare check` says how to get it") from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if time.time() - state[1] / 1e9 > RACY_SECONDS:
        with contextlib.suppress(OSError, UserError):  # it is computed again the next time
            _remember(writable_root(cache_root) / MEMORY, str(path), [*state, digest])
    return digest


def _state(path):
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ino]


def _remembered(memory):
    """The valid entries of the file of digests; none where it is missing or damaged."""
    try:
        entries = parse_json(memory.read_text(encoding="utf-8")).items()
        return {path: entry for path, entry in entries if len(entry) == 4 and len(entry[3]) == 64}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _remember(memory, path, entry):
    with locked(memory.parent, memory.name):
        atomic_json(memory, {**_remembered(memory), path: entry})
