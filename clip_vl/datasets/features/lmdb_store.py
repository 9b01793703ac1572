"""Features in an LMDB folder: it maps an image id to a digest and an lz4 frame of msgpack."""

import json
import os
from pathlib import Path

from clip_vl.datasets.features.records import (
    LZ4_MAGIC,
    check_meta,
    damage,
    full_meta,
    pack_value,
    parsed_meta,
    plain_record,
    readable,
    record_key,
    unpack_value,
    writing,
)
from clip_vl.datasets.storage import lmdb_files
from clip_vl.engine.errors import UserError

COMMIT_EVERY = 100  # records per transaction: the most that an interruption can cost
META_KEY = b"\0features"  # no image id has a NUL in it


def has_lmdb(path):
    """A writer killed before its first byte leaves an empty file."""
    try:
        return (path / "data.mdb").stat().st_size > 0
    except OSError:
        return False


class LMDBWriter:
    """Collects records and commits them batch by batch: a transaction is there or not, whenever the process dies."""

    def __init__(self, path, meta):
        import lmdb

        self.path, self.meta, self.batch = path, meta, {}
        if has_lmdb(path):
            found = _lmdb_meta(path)
            lmdb_files.close_reader(path)  # LMDB lets a process open a file once
            if found is not None:
                check_meta(path, found, meta)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            # Without LMDB's own lock: `_locked` keeps other writers away, and readers take none.
            self.environment = lmdb.open(str(path), map_size=lmdb_files.MAP_SIZE, readahead=False, lock=False)
            with self.environment.begin(write=True) as transaction:
                transaction.put(META_KEY, self._meta(complete=False), overwrite=False)

    def _meta(self, complete):
        return json.dumps(full_meta(self.meta, complete)).encode()

    def done(self, img_id):
        """Whether a record is stored for an image."""
        with self.environment.begin(buffers=True) as transaction:
            return img_id in self.batch or transaction.get(record_key(img_id)) is not None

    def put(self, img_id, record):
        """Store a record, in place of one that may be there. Raises ValueError for what is not a record."""
        self.batch[img_id] = pack_value(img_id, plain_record(record))
        if len(self.batch) >= COMMIT_EVERY:
            self.commit()

    def commit(self):
        """Make what was put survive."""
        if self.batch:
            with writing(self.path), self.environment.begin(write=True) as transaction:
                transaction.put(META_KEY, self._meta(complete=False))
                transaction.cursor().putmulti([(record_key(img_id), value) for img_id, value in self.batch.items()])
            self.batch = {}

    def finish(self):
        """Make the store complete."""
        self.commit()
        with writing(self.path), self.environment.begin(write=True) as transaction:
            transaction.put(META_KEY, self._meta(complete=True))

    def close(self):
        self.environment.close()


def _lmdb_meta(path):
    """The meta of the LMDB at `path`, None for one without any record; UserError if it is no feature store."""
    import lmdb

    try:
        with lmdb_files.open_reader(path).begin() as transaction:
            text = transaction.get(META_KEY)
            first = next(iter(transaction.cursor()), None)
    except lmdb.Error as error:
        raise UserError(f"{path} is not a feature store: {error}") from None
    if text is not None:
        return parsed_meta(path, text)
    if first is None:
        return None
    if not first[1].startswith(LZ4_MAGIC):
        lmdb_files.close_reader(path)
        raise UserError(f"{path} is an LMDB of something else than features")
    return {"format": 0, "complete": True}  # CLIP-ViL's tool, which says nothing of what it wrote


class LMDBFeatures:
    """The records of an LMDB folder. It holds a path, so any worker can have a copy.

    meta: what the writer said, and the store's "format" and whether it is "complete"; the format of an LMDB of
    CLIP-ViL's own tool is 0
    """

    def __init__(self, path):
        self.path = Path(path)
        if not has_lmdb(self.path):
            raise UserError(f"there is no feature store at {path}")
        lmdb_files.close_reader(self.path)  # opened before the store grew, it would not see all of it
        self.meta = _lmdb_meta(self.path)
        if self.meta is None:
            raise UserError(f"{path} is empty: its writer was killed before it began; run it again")

    def keys(self):
        """The ids of all images, sorted."""
        with readable(self.path), lmdb_files.open_reader(self.path).begin() as transaction:
            return [os.fsdecode(key) for key in transaction.cursor().iternext(values=False) if key != META_KEY]

    def __len__(self):
        return lmdb_files.open_reader(self.path).stat()["entries"] - (self.meta["format"] > 0)

    def load(self, img_id):
        """The record of an image. Raises DamagedImage where it is missing or not what was written."""
        key = record_key(img_id)
        with damage(f"{self.path}/{img_id}"):
            with lmdb_files.open_reader(self.path).begin() as transaction:
                value = transaction.get(key)
            if value is None:
                raise ValueError("is not in the store")
            return unpack_value(img_id, value)
