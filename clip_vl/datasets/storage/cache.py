"""Caches: folders that are built once and then only read, by every rank, every loader worker and every later run.

A cache is `<cache root>/<name>-<key>/`, where the key is a digest of all inputs: changed inputs get another folder. It
is built under a temporary name and renamed at the end, so that an existing cache is whole. An advisory lock makes other
processes wait for the builder; the kernel releases it when the builder dies, whose temporary folder the next builder
removes. Caches are beside the data, never in /dev/shm.
"""

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import os
import shutil
import tempfile
from pathlib import Path

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.readers.json_files import parse_json

MANIFEST = "MANIFEST.json"
UNFINISHED = ".building"  # temporary folders are called .<name>-<key>.<random>.building
SMALL = 4 << 20  # bytes; files up to this size are verified by digest, larger ones by their size


def build_once(cache_root, name, key, build):
    """The folder `<name>-<key>`, made by `build(folder)` if no whole one exists.

    cache_root: folder of the caches; one of the user's own replaces it where it is read-only and lacks this cache
    key:        hexadecimal digest of all inputs of `build`; its first 16 digits are used
    build:      writes the files into the empty folder it is given
    Raises UserError where no folder is writable, or the disk is full.
    """
    folder = f"{name}-{key[:16]}"
    if is_whole(Path(cache_root, folder)):
        return Path(cache_root, folder)
    root = writable_root(cache_root)
    try:
        with locked(root, folder):
            if not is_whole(root / folder):
                _build(root / folder, build)
    except OSError as error:
        raise UserError(f"the cache {root / folder} cannot be built: {error.strerror or error}") from error
    _sweep(root)
    return root / folder


def _build(final, build):
    temporary = _temporary_folder(final)
    try:
        build(temporary)
        _write_manifest(temporary)
        temporary.chmod(0o755)  # mkdtemp makes it private, but other users may share the data
        _publish(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _publish(temporary, final):
    """Rename the finished folder; a damaged folder of that name is replaced, a whole one (without locks) is kept."""
    _sync(temporary)
    try:
        temporary.rename(final)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        if not is_whole(final):
            damaged = _temporary_folder(final)
            final.rename(damaged)
            temporary.rename(final)
            shutil.rmtree(damaged, ignore_errors=True)
    _sync(final.parent)


def _temporary_folder(final):
    return Path(tempfile.mkdtemp(prefix=f".{final.name}.", suffix=UNFINISHED, dir=final.parent))


def _write_manifest(folder):
    """Write the sizes and digests of the files, all synced to disk. The manifest is written last."""
    files = {}
    for path in sorted(folder.iterdir()):
        _sync(path)
        size = path.stat().st_size
        files[path.name] = {"size": size, "sha256": sha256(path) if size <= SMALL else None}
    (folder / MANIFEST).write_text(json.dumps({"files": files}, indent=1), encoding="utf-8")
    _sync(folder / MANIFEST)


def is_whole(folder):
    """Whether every file of the manifest exists with its size and, if small, its digest."""
    try:
        files = parse_json((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        return all(_is_intact(folder / name, entry) for name, entry in files.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _is_intact(path, entry):
    if path.stat().st_size != entry["size"]:
        return False
    return entry["sha256"] is None or sha256(path) == entry["sha256"]


def digest_of(settings):
    """Hexadecimal digest of a JSON value, for the key of a cache."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def sha256(path):
    """Hexadecimal digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def locked(root, name, wait=True):
    """Hold the lock of `name` in the folder `root`; yields whether it is held. The lock file is removed at the end.

    On a file system without locks nobody waits: two processes may build, and the first rename is kept.
    """
    path = root / f".{name}.lock"
    descriptor = _locked_file(path, wait)
    try:
        yield descriptor is not None
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)
            os.close(descriptor)


def _locked_file(path, wait):
    """A descriptor that holds the lock of the file at `path`, or None if another process holds it and `wait` is off."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        held = _flock(descriptor, wait)
        if held and _is_file_at(descriptor, path):
            return descriptor
        os.close(descriptor)
        if not held:
            return None  # else its last holder removed the file while this process waited: take the new one


def _flock(descriptor, wait):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
            raise
        return wait  # no locks here
    return True


def _is_file_at(descriptor, path):
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sweep(root):
    """Remove the temporary folders of killed builders: those whose lock nobody holds."""
    for path in root.glob(f".*{UNFINISHED}"):
        folder = path.name[1:].rsplit(".", 2)[0]
        with contextlib.suppress(OSError), locked(root, folder, wait=False) as builder_is_gone:
            if builder_is_gone:
                shutil.rmtree(path, ignore_errors=True)


def user_root(cache_root):
    """The user's own folder for caches of a read-only root; a temporary one for a user without a home."""
    try:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # no HOME and no entry in the user database
        home = Path(tempfile.gettempdir(), f"cache-{os.getuid()}")
    return home / "clip_vl" / hashlib.sha256(os.fsencode(Path(cache_root).resolve())).hexdigest()[:16]


@functools.lru_cache
def writable_root(cache_root):
    """`cache_root`, created if absent, or its `user_root` where it cannot be written, which is printed once."""
    reasons = []
    for root in (Path(cache_root), user_root(cache_root)):
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=root):
                pass
        except OSError as error:
            reasons.append(f"{root}: {error.strerror}")
            continue
        if reasons:
            dist.print0(f"caches go to {root}, because {reasons[0]}")
        return root
    raise UserError(
        f"no folder for caches is writable ({'; '.join(reasons)}); set XDG_CACHE_HOME to a writable folder"
    )
