"""Precomputed visual features on disk: image id -> record, a flat dict of str -> numpy array, int, float or str.

Two containers with one interface. An LMDB folder (.lmdb) maps the id to a digest and an lz4 frame of msgpack, arrays
encoded as the msgpack-numpy package does it. An HDF5 file (.h5, .hdf5) has a group per image and a dataset per field.
Writing may be interrupted at any moment; running it again continues it. Files may come from anyone: reading one runs no
code and opens no other file.
"""

import hashlib
import json
import math
import os
import re
import shutil
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np

from clip_vl.datasets import store
from clip_vl.datasets.data_root import _is_locked
from clip_vl.datasets.images import DamagedImage, relative_path
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_json, sync_folder

FORMAT = 1
COMMIT_EVERY = 100  # records per LMDB transaction: the most that an interruption can cost
SEGMENT = 1000  # records per HDF5 segment: the same
MAX_RECORD = 2**30  # bytes of a record: what claims more is damaged
META_KEY = b"\0features"  # no image id has a NUL in it
META_NAME = "clip_vl_features"  # the attribute of an HDF5 file
LZ4_MAGIC = b"\x04\x22\x4d\x18"
DIGEST_SIZE = 16
DTYPES = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")  # plain numbers: no objects, no structures, no strings
FIELD = re.compile(r"\w[\w.-]*")


# ---- records ----


def plain_record(record):
    """A record with its scalars as plain int, float or str and its arrays contiguous; ValueError for anything else."""
    return {_field_name(name): _plain_value(name, value) for name, value in record.items()}


def _field_name(name):
    if not isinstance(name, str) or not FIELD.fullmatch(name):
        raise ValueError(f"has a field {name!r:.80}; a field is named by a word")
    return name


def _plain_value(name, value):
    if isinstance(value, np.generic) or (isinstance(value, np.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, np.ndarray):
        if not DTYPES.fullmatch(value.dtype.str):
            raise ValueError(f"has a field {name} of type {value.dtype}; arrays hold plain numbers")
        return np.ascontiguousarray(value)
    if isinstance(value, int | float | str):
        return int(value) if isinstance(value, bool) else value
    raise ValueError(f"has a field {name} that is a {type(value).__name__}; fields are arrays, int, float or str")


def _to_msgpack(record):
    """The bytes of a plain record; equal records have equal bytes."""
    import msgpack

    return msgpack.packb(dict(sorted(record.items())), default=_encode_array, use_bin_type=True)


def _encode_array(array):
    return {
        b"nd": True,
        b"type": array.dtype.str,
        b"kind": b"",
        b"shape": array.shape,
        b"data": array.tobytes(),
    }


def unpack_frame(payload, limit=MAX_RECORD):
    """The fields in an lz4 frame of msgpack, at most `limit` bytes of it, arrays as msgpack-numpy encodes them.

    Raises ValueError or RuntimeError where it is not such.
    """
    import lz4.frame
    import msgpack

    size = lz4.frame.get_frame_info(payload)["content_size"]  # what decompression allocates, and holds it to
    if not 0 < size <= limit:
        raise ValueError(f"claims {size:,} bytes; a record has at least one and at most {limit:,}")
    record = msgpack.unpackb(lz4.frame.decompress(payload), raw=False, object_hook=_decode_array)
    if not isinstance(record, dict):
        raise ValueError(f"holds a {type(record).__name__}, not named fields")
    return record


def _decode_array(encoded):
    """The array, or the numpy scalar, that a msgpack-numpy dict stands for; any other dict is left alone."""
    if b"nd" not in encoded:
        return encoded
    kind, data = encoded.get(b"type"), encoded.get(b"data")
    if not isinstance(kind, str) or not DTYPES.fullmatch(kind) or not isinstance(data, bytes):
        raise ValueError(f"has an array of type {kind!r:.40}; arrays hold plain numbers")
    shape = encoded.get(b"shape") if encoded[b"nd"] else []
    if not isinstance(shape, list) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise ValueError(f"has an array of shape {shape!r:.40}")
    dtype = np.dtype(kind)
    if len(data) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"has {len(data)} bytes for an array of {dtype} {shape}")
    return np.frombuffer(data, dtype).reshape(shape).copy()  # the buffer is read-only, torch wants none of those


def _digest(img_id, payload):
    digest = hashlib.blake2b(_key(img_id) + b"\0", digest_size=DIGEST_SIZE)
    digest.update(payload)
    return digest


def _key(img_id):
    """An image id as a key; DataError unless it is a plain file name, which is also a plain name of an HDF5 group."""
    relative_path(img_id)
    if img_id in (".", ".."):
        raise DataError(f"img_id {img_id!r} is not a plain file name")
    return img_id.encode()


def pack_value(img_id, record):
    """The LMDB value of a plain record: a digest of key and content, then an lz4 frame of msgpack."""
    import lz4.frame

    data = _to_msgpack(record)
    if len(data) > MAX_RECORD:
        raise ValueError(f"has {len(data):,} bytes; the limit is {MAX_RECORD:,}")
    payload = lz4.frame.compress(data)
    return _digest(img_id, payload).digest() + payload


def unpack_value(img_id, value):
    """The record of an LMDB value; ValueError or RuntimeError where it is not what was written under this id.

    A value may also lack the digest, as CLIP-ViL's tool writes it: then only the form of its content is checked.
    """
    digest, payload = value[:DIGEST_SIZE], value[DIGEST_SIZE:]
    if not payload.startswith(LZ4_MAGIC) or _digest(img_id, payload).digest() != digest:
        if not value.startswith(LZ4_MAGIC):
            raise ValueError("does not have the content that was written: its digest differs")
        payload = value
    return plain_record(unpack_frame(payload))


@contextmanager
def damage(name):
    """What a library raises in the block for damaged bytes becomes a DamagedImage with `name`."""
    import lmdb

    try:
        yield
    except (lmdb.Error, OSError, KeyError, RuntimeError, ValueError, TypeError, OverflowError) as error:
        raise DamagedImage(name, str(error) or type(error).__name__) from None


@contextmanager
def _readable(path):
    """What a library raises in the block for a damaged file becomes a DataError that names the file."""
    try:
        with damage(path):
            yield
    except DamagedImage as error:
        raise DataError(f"{error}; copy the store again or write it anew") from None


# ---- both containers ----


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
    writer_class = _LMDBWriter if is_lmdb(path) else _HDF5Writer
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
        _check_meta(shard.path, shard.meta, _content(shards[0].meta))
    with write_features(path, _content(shards[0].meta)) as writer:
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
    return _has_data(path) if is_lmdb(path) else path.exists() or _parts_meta(path).exists()


def _remove(path):
    """Delete a complete store. Its data goes in one step, so that no half of it is left to be taken for a store."""
    if is_lmdb(path):
        store._close_reader(path)
        (path / "data.mdb").unlink()
        shutil.rmtree(path)
    else:
        _close_hdf5(path)
        shutil.rmtree(_parts(path), ignore_errors=True)
        path.unlink()


@contextmanager
def _locked(path):
    """Keep the writing of a store to this process; the lock's file goes when it is done."""
    lock = path.with_name(f"{path.name}.lock")
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        if not _is_locked(descriptor) or not _is_file_at(descriptor, lock):
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


@contextmanager
def _writing(path):
    """What goes wrong on the disk in the block becomes a UserError."""
    import lmdb

    try:
        yield
    except (lmdb.Error, OSError, RuntimeError) as error:  # h5py raises either of the latter
        raise UserError(f"{path} cannot be written: {error}; what was committed is kept, run it again") from error


def _content(meta):
    """What the writer said, without what the store says of itself."""
    return {name: value for name, value in meta.items() if name not in ("format", "complete")}


def _full_meta(meta, complete):
    return {**meta, "format": FORMAT, "complete": complete}


def _check_meta(path, found, wanted):
    """Raise UserError where the store at `path` is of another format or does not hold what it is to hold."""
    if found["format"] not in (0, FORMAT):
        raise UserError(f"{path} has format {found['format']}, this program reads {FORMAT}; use the one that wrote it")
    if wanted is not None and _content(found) != wanted:
        raise UserError(f"{path} holds {_content(found)}, not {wanted}; write to another store")


def _parsed_meta(path, text):
    """The meta of a store, checked."""
    try:
        meta = json.loads(text)
        meta["format"], meta["complete"]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{path} does not say what it holds: its meta record is damaged; write it anew") from None
    _check_meta(path, meta, None)
    return meta


# ---- LMDB ----


def _has_data(path):
    """A writer killed before its first byte leaves an empty file."""
    try:
        return (path / "data.mdb").stat().st_size > 0
    except OSError:
        return False


class _LMDBWriter:
    """Collects records and commits them batch by batch: a transaction is there or not, whenever the process dies."""

    def __init__(self, path, meta):
        import lmdb

        self.path, self.meta, self.batch = path, meta, {}
        if _has_data(path):
            found = _lmdb_meta(path)
            store._close_reader(path)  # LMDB lets a process open a file once
            if found is not None:
                _check_meta(path, found, meta)
        with _writing(path):
            path.mkdir(parents=True, exist_ok=True)
            # Without LMDB's own lock: `_locked` keeps other writers away, and readers take none.
            self.environment = lmdb.open(str(path), map_size=store.MAP_SIZE, readahead=False, lock=False)
            with self.environment.begin(write=True) as transaction:
                transaction.put(META_KEY, self._meta(complete=False), overwrite=False)

    def _meta(self, complete):
        return json.dumps(_full_meta(self.meta, complete)).encode()

    def done(self, img_id):
        """Whether a record is stored for an image."""
        with self.environment.begin(buffers=True) as transaction:
            return img_id in self.batch or transaction.get(_key(img_id)) is not None

    def put(self, img_id, record):
        """Store a record, in place of one that may be there. Raises ValueError for what is not a record."""
        self.batch[img_id] = pack_value(img_id, plain_record(record))
        if len(self.batch) >= COMMIT_EVERY:
            self.commit()

    def commit(self):
        """Make what was put survive."""
        if self.batch:
            with _writing(self.path), self.environment.begin(write=True) as transaction:
                transaction.put(META_KEY, self._meta(complete=False))
                transaction.cursor().putmulti([(_key(img_id), value) for img_id, value in self.batch.items()])
            self.batch = {}

    def finish(self):
        """Make the store complete."""
        self.commit()
        with _writing(self.path), self.environment.begin(write=True) as transaction:
            transaction.put(META_KEY, self._meta(complete=True))

    def close(self):
        self.environment.close()


def _lmdb_meta(path):
    """The meta of the LMDB at `path`, None for one without any record; UserError if it is no feature store."""
    import lmdb

    try:
        with store._reader(path).begin() as transaction:
            text = transaction.get(META_KEY)
            first = next(iter(transaction.cursor()), None)
    except lmdb.Error as error:
        raise UserError(f"{path} is not a feature store: {error}") from None
    if text is not None:
        return _parsed_meta(path, text)
    if first is None:
        return None
    if not first[1].startswith(LZ4_MAGIC):
        store._close_reader(path)
        raise UserError(f"{path} is an LMDB of something else than features")
    return {"format": 0, "complete": True}  # CLIP-ViL's tool, which says nothing of what it wrote


class LMDBFeatures:
    """The records of an LMDB folder. It holds a path, so any worker can have a copy.

    meta: what the writer said, and the store's "format" and whether it is "complete"; the format of an LMDB of
    CLIP-ViL's own tool is 0
    """

    def __init__(self, path):
        self.path = Path(path)
        if not _has_data(self.path):
            raise UserError(f"there is no feature store at {path}")
        store._close_reader(self.path)  # opened before the store grew, it would not see all of it
        self.meta = _lmdb_meta(self.path)
        if self.meta is None:
            raise UserError(f"{path} is empty: its writer was killed before it began; run it again")

    def keys(self):
        """The ids of all images, sorted."""
        with _readable(self.path), store._reader(self.path).begin() as transaction:
            return [os.fsdecode(key) for key in transaction.cursor().iternext(values=False) if key != META_KEY]

    def __len__(self):
        return store._reader(self.path).stat()["entries"] - (self.meta["format"] > 0)

    def load(self, img_id):
        """The record of an image. Raises DamagedImage where it is missing or not what was written."""
        key = _key(img_id)
        with damage(f"{self.path}/{img_id}"):
            with store._reader(self.path).begin() as transaction:
                value = transaction.get(key)
            if value is None:
                raise ValueError("is not in the store")
            return unpack_value(img_id, value)


# ---- HDF5 ----
#
# A file that is open for writing when its process dies is lost. So records go into segments, small files in a folder
# beside the store, each renamed into place when it is whole; all are merged into the store at the end.


def _parts(path):
    return path.with_name(f"{path.name}.parts")


def _parts_meta(path):
    return _parts(path) / "meta.json"


def _segments(path):
    """The published segments of the store at `path`, oldest first."""
    return sorted(_parts(path).glob("[0-9]*.h5"))


def _publish(temporary, path):
    """Give a file that is whole its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


class _HDF5Writer:
    """Fills one segment after another; see above."""

    def __init__(self, path, meta):
        self.path, self.meta, self.parts = path, meta, _parts(path)
        self.new, self.segment, self.files = set(), None, []
        if exists(path):
            _check_meta(path, _hdf5_meta(path), meta)
        _close_hdf5(path)
        self.files = _opened_files(path)
        with _writing(path):
            self.parts.mkdir(exist_ok=True)
            atomic_json(_parts_meta(path), _full_meta(meta, complete=False))

    def done(self, img_id):
        """Whether a whole record is stored for an image."""
        _key(img_id)
        return img_id in self.new or any(_is_whole(file, img_id) for file in self.files)

    def put(self, img_id, record):
        """Store a record, in place of one that may be there. Raises ValueError for what is not a record."""
        import h5py

        _key(img_id)
        record = plain_record(record)
        with _writing(self.path):
            if self.segment is None:
                # The newer file format has checksums of all that is not data; the data has our digest.
                self.segment = h5py.File(self.parts / "segment.tmp", "w", libver="v110")
            if img_id in self.segment:
                del self.segment[img_id]
            _write_group(self.segment, img_id, record)
        self.new.add(img_id)
        if len(self.segment) >= SEGMENT:
            self.commit()

    def commit(self):
        """Make what was put survive."""
        if self.segment is not None:
            with _writing(self.path):
                self.segment.close()
                self.segment = None
                number = max((int(path.stem) + 1 for path in _segments(self.path)), default=0)
                _publish(self.parts / "segment.tmp", self.parts / f"{number:06d}.h5")

    def finish(self):
        """Merge all segments into the store, which is then complete."""
        self.commit()
        self.close()
        with _writing(self.path):
            if _segments(self.path) or not self.path.exists():
                self._merge()
            shutil.rmtree(self.parts)

    def _merge(self):
        import h5py

        temporary = self.parts / "merged.tmp"
        with h5py.File(temporary, "w", libver="v110") as merged:
            merged.attrs[META_NAME] = _fixed(json.dumps(_full_meta(self.meta, complete=True)))
            for path in [*reversed(_segments(self.path)), *([self.path] if self.path.exists() else [])]:
                with _open_hdf5(path) as file:
                    for name in file:
                        if name not in merged and _is_whole(file, name):  # the newest record of an image stays
                            file.copy(name, merged)
        _publish(temporary, self.path)

    def close(self):
        for file in [*self.files, *([self.segment] if self.segment else [])]:
            file.close()
        self.files, self.segment = [], None


def _write_group(file, img_id, record):
    """One group; its digest comes last, so a group without one is unfinished."""
    group = file.create_group(img_id)
    for name, value in record.items():
        group.create_dataset(name, data=value)
    group.attrs["digest"] = _fixed(_digest(img_id, _to_msgpack(record)).hexdigest())


def _fixed(text):
    """Text of fixed length, which lies in a header that has a checksum.

    Other text lies in HDF5's global heap, which has none: a zeroed block in it sends the library round in circles.
    """
    return np.bytes_(text.encode())


def _is_whole(file, img_id):
    group = hdf5_group(file, img_id)
    return group is not None and "digest" in group.attrs


def hdf5_group(file, img_id):
    """The group of an image, or None; ValueError for a link to elsewhere, which h5py would follow into other files."""
    import h5py

    link = file.get(img_id, getlink=True)
    if link is None:
        return None
    group = file[img_id] if isinstance(link, h5py.HardLink) else None
    if not isinstance(group, h5py.Group):
        raise ValueError("is not a group of fields")
    return group


def hdf5_fields(group, names=None):
    """The fields of a group, or those of them that are in `names`, as a plain record. Raises ValueError."""
    names = list(group) if names is None else [name for name in names if name in group]
    return plain_record({name: _field_value(group, name) for name in names})


def _field_value(group, name):
    """The value of a dataset; one whose data lies in other files is refused."""
    import h5py

    dataset = group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise ValueError(f"has a field {name} whose data is not in the file")
    if dataset.nbytes is None or dataset.nbytes > MAX_RECORD:
        raise ValueError(f"has a field {name} of {dataset.nbytes} bytes; the limit is {MAX_RECORD:,}")
    return dataset.asstr()[()] if h5py.check_string_dtype(dataset.dtype) else dataset[()]


def _open_hdf5(path):
    """A file open for reading, without locks: the store may lie on a read-only disk. Raises UserError, DataError."""
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except FileNotFoundError:
        raise
    except OSError as error:
        if h5py.is_hdf5(path):
            raise DataError(f"{path} cannot be read: {error}; copy it again or write it anew") from None
        raise UserError(f"{path} is not an HDF5 file: {error}") from None


def _opened_files(path):
    """The files of the store at `path`, newest first. A writer that merges them meanwhile is no harm."""
    files = []
    for part in [*reversed(_segments(path)), path]:  # the store last: it has the records of segments that vanished
        try:
            files.append(_open_hdf5(part))
        except FileNotFoundError:
            pass
        except BaseException:
            for file in files:
                file.close()
            raise
    return files


_hdf5_readers = {}  # path -> (process id, files)


def hdf5_files(path):
    """The files of the store at `path`, opened once per process; a forked worker must not use its parent's."""
    process, files = _hdf5_readers.get(path, (None, ()))
    if process != os.getpid():
        _close_hdf5(path)
        files = _opened_files(path)
        _hdf5_readers[path] = os.getpid(), files
    return files


def _close_hdf5(path):
    _, files = _hdf5_readers.pop(path, (None, ()))
    for file in files:
        file.close()


def _hdf5_meta(path):
    """The meta of the HDF5 store at `path`; UserError if it is no feature store."""
    if not path.exists():
        return _parsed_meta(path, _parts_meta(path).read_text())
    with _open_hdf5(path) as file, _readable(path):
        text = file.attrs.get(META_NAME)
    if text is None:
        raise UserError(f"{path} is an HDF5 file of something else than a feature store")
    meta = _parsed_meta(path, text)
    return meta | {"complete": meta["complete"] and not _segments(path)}


class HDF5Features:
    """The records of an HDF5 file, and of the segments that its writer has not merged yet; as `LMDBFeatures`."""

    def __init__(self, path):
        self.path = Path(path)
        if not exists(self.path):
            raise UserError(f"there is no feature store at {path}")
        _close_hdf5(self.path)  # opened before the store grew, it would not see all of it
        self.meta = _hdf5_meta(self.path)

    def keys(self):
        """The ids of all images, sorted."""
        with _readable(self.path):
            return sorted({img_id for file in hdf5_files(self.path) for img_id in file})

    def __len__(self):
        files = hdf5_files(self.path)
        with _readable(self.path):
            return len(files[0]) if len(files) == 1 else len(self.keys())

    def load(self, img_id):
        """The record of an image. Raises DamagedImage where it is missing or not what was written."""
        _key(img_id)
        files = hdf5_files(self.path)
        with damage(f"{self.path}/{img_id}"):
            group = next((group for group in (hdf5_group(file, img_id) for file in files) if group is not None), None)
            if group is None:
                raise ValueError("is not in the store")
            record, digest = hdf5_fields(group), group.attrs.get("digest")
            wanted = _digest(img_id, _to_msgpack(record)).hexdigest()
            if digest not in (_fixed(wanted), wanted):  # the latter in files of earlier versions
                raise ValueError("does not have the content that was written: its digest differs")
            return record
