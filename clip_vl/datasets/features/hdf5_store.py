"""Features in an HDF5 file: a group per image and a dataset per field.

A file that is open for writing when its process dies is lost. So records go into segments, small files in a folder
beside the store, each renamed into place when it is whole; all are merged into the store at the end. Reading a file
follows no link to another one.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np

from clip_vl.datasets.features.records import (
    MAX_RECORD,
    check_meta,
    damage,
    full_meta,
    parsed_meta,
    plain_record,
    readable,
    record_digest,
    record_key,
    to_msgpack,
    writing,
)
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_json, sync_folder

SEGMENT = 1000  # records per segment: the most that an interruption can cost
META_NAME = "clip_vl_features"  # the attribute of a file that says what is in it


def parts(path):
    return path.with_name(f"{path.name}.parts")


def parts_meta(path):
    return parts(path) / "meta.json"


def has_hdf5(path):
    """Whether there is a store, complete or not, at `path`."""
    return path.exists() or parts_meta(path).exists()


def _segments(path):
    """The published segments of the store at `path`, oldest first."""
    return sorted(parts(path).glob("[0-9]*.h5"))


def _publish(temporary, path):
    """Give a file that is whole its name."""
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_folder(path.parent)


class HDF5Writer:
    """Fills one segment after another; see above."""

    def __init__(self, path, meta):
        self.path, self.meta, self.parts = path, meta, parts(path)
        self.new, self.segment, self.files = set(), None, []
        if has_hdf5(path):
            check_meta(path, _hdf5_meta(path), meta)
        close_hdf5(path)
        self.files = _opened_files(path)
        with writing(path):
            self.parts.mkdir(exist_ok=True)
            atomic_json(parts_meta(path), full_meta(meta, complete=False))

    def done(self, img_id):
        """Whether a whole record is stored for an image."""
        record_key(img_id)
        return img_id in self.new or any(_is_whole(file, img_id) for file in self.files)

    def put(self, img_id, record):
        """Store a record, in place of one that may be there. Raises ValueError for what is not a record."""
        import h5py

        record_key(img_id)
        record = plain_record(record)
        with writing(self.path):
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
            with writing(self.path):
                self.segment.close()
                self.segment = None
                number = max((int(path.stem) + 1 for path in _segments(self.path)), default=0)
                _publish(self.parts / "segment.tmp", self.parts / f"{number:06d}.h5")

    def finish(self):
        """Merge all segments into the store, which is then complete."""
        self.commit()
        self.close()
        with writing(self.path):
            if _segments(self.path) or not self.path.exists():
                self._merge()
            shutil.rmtree(self.parts)

    def _merge(self):
        import h5py

        temporary = self.parts / "merged.tmp"
        with h5py.File(temporary, "w", libver="v110") as merged:
            merged.attrs[META_NAME] = _fixed(json.dumps(full_meta(self.meta, complete=True)))
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
    group.attrs["digest"] = _fixed(record_digest(img_id, to_msgpack(record)).hexdigest())


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
        close_hdf5(path)
        files = _opened_files(path)
        _hdf5_readers[path] = os.getpid(), files
    return files


def close_hdf5(path):
    _, files = _hdf5_readers.pop(path, (None, ()))
    for file in files:
        file.close()


def _hdf5_meta(path):
    """The meta of the HDF5 store at `path`; UserError if it is no feature store."""
    if not path.exists():
        return parsed_meta(path, parts_meta(path).read_text())
    with _open_hdf5(path) as file, readable(path):
        text = file.attrs.get(META_NAME)
    if text is None:
        raise UserError(f"{path} is an HDF5 file of something else than a feature store")
    meta = parsed_meta(path, text)
    return meta | {"complete": meta["complete"] and not _segments(path)}


class HDF5Features:
    """The records of an HDF5 file, and of the segments that its writer has not merged yet; as `LMDBFeatures`."""

    def __init__(self, path):
        self.path = Path(path)
        if not has_hdf5(self.path):
            raise UserError(f"there is no feature store at {path}")
        close_hdf5(self.path)  # opened before the store grew, it would not see all of it
        self.meta = _hdf5_meta(self.path)

    def keys(self):
        """The ids of all images, sorted."""
        with readable(self.path):
            return sorted({img_id for file in hdf5_files(self.path) for img_id in file})

    def __len__(self):
        files = hdf5_files(self.path)
        with readable(self.path):
            return len(files[0]) if len(files) == 1 else len(self.keys())

    def load(self, img_id):
        """The record of an image. Raises DamagedImage where it is missing or not what was written."""
        record_key(img_id)
        files = hdf5_files(self.path)
        with damage(f"{self.path}/{img_id}"):
            group = next((group for group in (hdf5_group(file, img_id) for file in files) if group is not None), None)
            if group is None:
                raise ValueError("is not in the store")
            record, digest = hdf5_fields(group), group.attrs.get("digest")
            wanted = record_digest(img_id, to_msgpack(record)).hexdigest()
            if digest not in (_fixed(wanted), wanted):  # the latter in files of earlier versions
                raise ValueError("does not have the content that was written: its digest differs")
            return record
