"""Precomputed visual features on disk: image id -> record (`feature_records`), in an LMDB folder or an HDF5 file.

Two containers with one interface, told apart by the name: .lmdb (`feature_lmdb`), .h5 or .hdf5 (`feature_hdf5`).
Writing may be interrupted at any moment; running it again continues it. Files may come from anyone: reading one runs no
code and opens no other file.
"""

import json
import os
import shutil
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from clip_vl.datasets.features.hdf5_store import HDF5Features, HDF5Writer, close_hdf5, has_hdf5, parts
from clip_vl.datasets.features.lmdb_store import LMDBFeatures, LMDBWriter, has_lmdb
from clip_vl.datasets.features.records import check_meta, content, writing
from clip_vl.datasets.storage import lmdb_files
from clip_vl.engine.files import try_lock
from clip_vl.engine.errors import UserError


def is_lmdb(path):
    """Whether the name of a store is that of an LMDB folder; UserError if it is not that of an HDF5 file either."""
    suffix = Path(path).suffix
    if suffix not in (".lmdb", ".h5", ".hdf5"):
        raise UserError(f"{path} is no name of a feature store; it ends in .lmdb, .h5 or .hdf5")
    return suffix == ".lmdb"


def open_features(path):
    """The reader of the store at `path`: .meta, .keys(), len() and .load(img_id); see `LMDBFeatures`.

    raises: UserError where there is no store, DataError where its file was cut short
    """
    return LMDBFeatures(path) if is_lmdb(path) else HDF5Features(path)


@contextmanager
def write_features(path, meta):
    """Open the store at `path` for writing, made if need be; `meta` (JSON) says what it holds. A context manager.

    Yields a writer: done(img_id) tells whether an image is stored, put(img_id, record) stores it. What is put survives
    an exception; a SIGKILL costs at most the last COMMIT_EVERY records of an LMDB, SEGMENT of an HDF5 file. The store
    is complete, and says so in its meta, once the block has ended normally. Until then the records of an HDF5 file are
    in the folder <path>.parts, which a reader reads as well.
    raises: UserError where the store cannot be written, holds something else than `meta`, or has another writer
    """
    path, meta = Path(path), json.loads(json.dumps(meta))
    writer_class = LMDBWriter if is_lmdb(path) else HDF5Writer
    with _locked(path), closing(writer_class(path, meta)) as writer:
        try:
            yield writer
        except BaseException:
            writer.commit()
            raise
        writer.finish()


def merge_features(path, shards, advance=lambda count: None):
    """Move the records of complete stores into the one at `path`, which is complete once all are there.

    An interrupted merge is run again with the same arguments. Shards are deleted after the last record was moved, so
    for a while the disk holds both. `advance(1)` is called for every record.
    raises: UserError where a shard is missing, not complete, or holds something else than the others; DamagedImage
    """
    path = Path(path)
    present = [Path(shard) for shard in shards if exists(shard)]
    missing = [shard for shard in shards if not exists(shard)]
    if missing and not _holds_all(path, present):
        raise UserError(f"{missing[0]} is missing, and {path} does not hold its records; write the shard first")
    with ExitStack() as stack:
        for shard in present:
            stack.enter_context(_locked(shard))
        if present:
            _copy_records(path, [open_features(shard) for shard in present], advance)
        for shard in present:
            _remove(shard)


def _copy_records(path, shards, advance):
    for shard in shards:
        if not shard.meta["complete"]:
            raise UserError(f"{shard.path} is not complete; run the program that writes it again, then merge")
        check_meta(shard.path, shard.meta, content(shards[0].meta))
    with write_features(path, content(shards[0].meta)) as writer:
        for shard in shards:
            for img_id in shard.keys():
                if not writer.done(img_id):
                    writer.put(img_id, shard.load(img_id))
                advance(1)


def _holds_all(path, shards):
    """Whether a merge into `path` has ended but for deleting its shards."""
    if not exists(path):
        return False
    merged = open_features(path)
    return merged.meta["complete"] and set(merged.keys()).issuperset(
        img_id for shard in shards for img_id in open_features(shard).keys()
    )


def exists(path):
    """Whether there is a store, complete or not, at `path`."""
    path = Path(path)
    return has_lmdb(path) if is_lmdb(path) else has_hdf5(path)


def _remove(path):
    """Delete a complete store. Its data goes in one step, so that no half of it is left to be taken for a store."""
    if is_lmdb(path):
        lmdb_files.close_reader(path)
        (path / "data.mdb").unlink()
        shutil.rmtree(path)
    else:
        close_hdf5(path)
        shutil.rmtree(parts(path), ignore_errors=True)
        path.unlink()


@contextmanager
def _locked(path):
    """Keep the writing of a store to this process; the lock's file goes when it is done."""
    lock = path.with_name(f"{path.name}.lock")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not try_lock(descriptor) or not _is_file_at(descriptor, lock):
            raise UserError(f"another process is writing {path}; wait until it is done, then run again")
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(descriptor)


def _is_file_at(descriptor, path):
    """Whether an open file still has its name; the last holder of a lock removes it."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
