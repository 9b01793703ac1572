"""Region features of object detectors: K boxes of an image, each with a feature vector, an object and an attribute.

Read from LXMERT's TSV files, from VL-T5's HDF5 files and from our own stores (`feature_store`), into records of
features (K, F) float16 or float32; boxes (K, 4) float32, x1, y1, x2, y2 in pixels; objects_id, attrs_id (K,) int64;
objects_conf, attrs_conf (K,) float32; img_h, img_w int. The four detections may be missing where a file has none.
"""

import base64
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from clip_vl.datasets.features.hdf5_store import META_NAME, hdf5_fields, hdf5_files, hdf5_group
from clip_vl.datasets.features.records import damage
from clip_vl.datasets.features.store import is_lmdb, open_features, write_features
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.engine.errors import DataError, UserError

MAX_BOXES = 1000
MAX_LINE = 64 * 2**20  # bytes; 36 boxes of width 2048 take 400 KB
TOLERANCE = 1e-5  # LXMERT's, for boxes that end at the border
DETECTIONS = {"objects_id": np.int64, "objects_conf": np.float32, "attrs_id": np.int64, "attrs_conf": np.float32}
VL_T5_NAMES = {
    **{name: name for name in ("features", "boxes", "img_h", "img_w")},
    **{"obj_id": "objects_id", "obj_conf": "objects_conf", "attr_id": "attrs_id", "attr_conf": "attrs_conf"},
}
TSV_COLUMNS = ("img_id", "img_h", "img_w", *DETECTIONS, "num_boxes", "boxes", "features")


# ---- records ----


def check_regions(record):
    """A region record in the types given above; ValueError where its arrays contradict each other or are not finite."""
    for name in ("features", "boxes", "img_h", "img_w"):
        if name not in record:
            raise ValueError(f"has no field {name}; is it a record of region features?")
    features = np.asarray(record["features"])
    if features.ndim != 2 or features.dtype.kind != "f" or not 1 <= len(features) <= MAX_BOXES or not features.size:
        raise ValueError(f"has features {_form(features)}; a matrix of 1 to {MAX_BOXES} rows of float is expected")
    K = len(features)
    checked = {
        "features": _finite("features", features if features.dtype.itemsize <= 4 else features.astype(np.float32)),
        "boxes": _finite("boxes", _array(record, "boxes", np.float32, (K, 4))),
        **{name: _array(record, name, dtype, (K,)) for name, dtype in DETECTIONS.items() if name in record},
        **{name: _side(record, name) for name in ("img_h", "img_w")},
    }
    for name in checked.keys() & {"objects_conf", "attrs_conf"}:
        _finite(name, checked[name])
    return checked


def _form(array):
    return f"of type {array.dtype} and shape {array.shape}"


def _array(record, name, dtype, shape):
    array = np.asarray(record[name])
    if array.shape != shape or array.dtype.kind not in ("iu" if dtype is np.int64 else "iuf"):
        raise ValueError(f"has {name} {_form(array)}; {np.dtype(dtype)} {shape} goes with its features")
    return array.astype(dtype, copy=False)


def _finite(name, array):
    if not np.isfinite(array).all():
        raise ValueError(f"has {name} that are not finite")
    return array


def _side(record, name):
    side = np.asarray(record[name])
    if side.size != 1 or side.dtype.kind not in "iuf" or not 1 <= side.item() < 2**31:
        raise ValueError(f"has {name} {record[name]!r:.40}; it is a number of pixels")
    return int(side.item())


def normalised_boxes(record, name="regions"):
    """Boxes in parts of the image's width and height: (K, 4) float32 in 0..1, up to LXMERT's tolerance of 1e-5.

    Raises DamagedImage with `name` where a box leaves its image.
    """
    sides = np.float32([record["img_w"], record["img_h"]] * 2)
    boxes = record["boxes"].astype(np.float32) / sides
    outside = ~((boxes >= -TOLERANCE) & (boxes <= 1 + TOLERANCE)).all(axis=1)
    if outside.any():
        box = record["boxes"][outside][0].tolist()
        raise DamagedImage(name, f"box {box} leaves its image of {record['img_w']}x{record['img_h']} pixels")
    return boxes


# ---- LXMERT's TSV ----


def read_lxmert_tsv(path):
    """Yield (img_id, record) of a TSV file, in its order and a line at a time.

    Columns, without a header: img_id, img_h, img_w, objects_id, objects_conf, attrs_id, attrs_conf, num_boxes, boxes,
    features; arrays are base64 of little-endian int64 (the ids) or float32. Raises DataError naming file and line.
    """
    width, seen = None, set()
    for number, _, line in _lines(path):
        with _blamed_on(f"{path}:{number}"):
            img_id, record = _parse_line(line, width)
        _check_new(path, number, img_id, seen)
        seen.add(img_id)
        width = record["features"].shape[1]
        yield img_id, record


def _check_new(path, number, img_id, seen):
    if img_id in seen:
        raise DataError(f"{path}:{number} is a second line for image {img_id!r:.80}; remove one of the two")


def _lines(path):
    """(line number, offset in bytes, line without its end) of each line of a TSV file."""
    offset = 0
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), start=1):
            if len(line) > MAX_LINE:
                raise DataError(f"{path}:{number} is longer than {MAX_LINE:,} bytes; is it a TSV file of regions?")
            yield number, offset, line.rstrip(b"\r\n")  # both: the published files come from Python's csv module
            offset += len(line)


@contextmanager
def _opened(path):
    try:
        file = Path(path).open("rb")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    with file:
        yield file


@contextmanager
def _blamed_on(place):
    """A ValueError in the block becomes a DataError that names the place."""
    try:
        yield
    except ValueError as error:
        raise DataError(f"{place} {error}; fetch the file again") from None


def _parse_line(line, width=None):
    """(img_id, record) of a line; ValueError for any other form, and for features of another width than `width`."""
    values = line.split(b"\t")
    if len(values) != len(TSV_COLUMNS):
        raise ValueError(f"has {len(values)} columns, not {len(TSV_COLUMNS)}")
    columns = dict(zip(TSV_COLUMNS, values))
    K = _integer(columns, "num_boxes")
    if not 1 <= K <= MAX_BOXES:
        raise ValueError(f"has {K} boxes; 1 to {MAX_BOXES} are expected")
    record = {
        "features": _decoded(columns, "features", np.float32, (K, width or -1)),
        "boxes": _decoded(columns, "boxes", np.float32, (K, 4)),
        **{name: _decoded(columns, name, dtype, (K,)) for name, dtype in DETECTIONS.items()},
        **{name: _integer(columns, name) for name in ("img_h", "img_w")},
    }
    return columns["img_id"].decode(), check_regions(record)


def _integer(columns, name):
    text = columns[name]
    if not text.isdigit() or len(text) > 9:
        raise ValueError(f"has {name} {text!r:.40}; a number is expected")
    return int(text)


def _decoded(columns, name, dtype, shape):
    """The array of a base64 column; one length in `shape` may be -1."""
    try:
        data = base64.b64decode(columns[name], validate=True)
    except ValueError as error:
        raise ValueError(f"has no base64 in column {name} ({error})") from None
    dtype = np.dtype(dtype).newbyteorder("<")
    try:
        return np.frombuffer(data, dtype).reshape(shape).copy()
    except ValueError:
        raise ValueError(f"has {len(data)} bytes in column {name}, which are not {dtype} {shape}") from None


class TsvRegions:
    """The records of a TSV file by image id; __init__ reads the file once to find where the lines of the ids begin.

    It holds no open file, so any worker can have a copy. Raises UserError, and DataError naming file and line.
    """

    def __init__(self, path):
        self.path, self.offsets, self.meta = Path(path), {}, {"format": 0, "complete": True}
        for number, offset, line in _lines(path):
            with _blamed_on(f"{path}:{number}"):
                if number == 1:  # a last line that was cut short may still have a form of its own
                    self.width = _parse_line(line)[1]["features"].shape[1]
                img_id = line.partition(b"\t")[0].decode()
            _check_new(path, number, img_id, self.offsets)
            self.offsets[img_id] = offset

    def keys(self):
        """The ids of all images, sorted."""
        return sorted(self.offsets)

    def __len__(self):
        return len(self.offsets)

    def load(self, img_id):
        """The record of an image. Raises DamagedImage."""
        with damage(f"{self.path}/{img_id}"):
            if img_id not in self.offsets:
                raise ValueError("is not in the file")
            with self.path.open("rb") as file:
                file.seek(self.offsets[img_id])
                found, record = _parse_line(file.readline(MAX_LINE).rstrip(b"\r\n"), self.width)
            if found != img_id:
                raise ValueError(f"has given its place to {found!r:.80}: the file was changed while in use")
            return record


# ---- HDF5 and LMDB ----


class H5Regions:
    """The records of an HDF5 file in VL-T5's layout: per image a group of features, boxes, obj_id, attr_conf, img_h...

    It holds no open file, so any worker can have a copy.
    """

    def __init__(self, path):
        self.path, self.meta = Path(path), {"format": 0, "complete": True}
        if not self.path.exists():
            raise UserError(f"there are no region features at {path}")
        first = next(iter(self._file()), None)
        with damage(f"{path}/{first}"):
            group = None if first is None else hdf5_group(self._file(), first)
        if group is None or not {"features", "boxes"} <= set(group):
            raise UserError(f"{path} holds no groups of features and boxes; is it a file of region features?")

    def _file(self):
        return hdf5_files(self.path)[0]

    def keys(self):
        """The ids of all images, sorted."""
        return sorted(self._file())

    def __len__(self):
        return len(self._file())

    def load(self, img_id):
        """The record of an image under the names of this module. Raises DamagedImage."""
        file = self._file()
        with damage(f"{self.path}/{img_id}"):
            group = hdf5_group(file, img_id) if img_id and "/" not in img_id else None
            if group is None:
                raise ValueError("is not in the file")
            fields = hdf5_fields(group, VL_T5_NAMES)
            return check_regions({VL_T5_NAMES[name]: value for name, value in fields.items()})


class StoredRegions:
    """The records of one of our stores, checked to be region records."""

    def __init__(self, path):
        self.store = open_features(path)
        self.path, self.meta = self.store.path, self.store.meta

    def keys(self):
        """The ids of all images, sorted."""
        return self.store.keys()

    def __len__(self):
        return len(self.store)

    def load(self, img_id):
        """The record of an image. Raises DamagedImage."""
        with damage(f"{self.path}/{img_id}"):
            return check_regions(self.store.load(img_id))


# ---- any source ----


def open_regions(path):
    """The region features in a .tsv, .h5, .hdf5 or .lmdb: a source with .meta, .keys(), len() and .load(img_id).

    `load` gives a checked record as described at the top, or raises DamagedImage. raises: UserError, DataError
    """
    path = Path(path)
    if path.suffix == ".tsv":
        return TsvRegions(path)
    if not is_lmdb(path) and path.exists() and META_NAME not in hdf5_files(path)[0].attrs:
        return H5Regions(path)
    return StoredRegions(path)


def convert_regions(source_path, target_path, advance=lambda count: None, relabel=lambda img_id, record: record):
    """Write the region features at `source_path` into our store at `target_path`, as float16; resumable.

    `advance(1)` is called for every image, `relabel(img_id, record)` for those that are written.
    returns: the number of images written
    raises:  UserError, DataError, DamagedImage for the first record that cannot be used
    """
    _, first = next(_records(source_path), (None, None))
    if first is None:
        raise UserError(f"{source_path} holds no images")
    width, count = first["features"].shape[1], 0
    with write_features(target_path, {"kind": "regions", "width": width}) as writer:
        for img_id, record in _records(source_path, skip=writer.done):
            if record is not None:
                writer.put(img_id, _halved(f"{source_path}/{img_id}", relabel(img_id, record), width))
                count += 1
            advance(1)
    return count


def region_width(source):
    """The width of the feature vectors of an opened source, by its first record. Raises UserError, DamagedImage."""
    first = next(iter(source.keys()), None)
    if first is None:
        raise UserError(f"{source.path} holds no images")
    return source.load(first)["features"].shape[1]


def _records(path, skip=lambda img_id: False):
    """Yield (img_id, record) of a source in the order in which it is read fastest; None for images to `skip`."""
    if Path(path).suffix == ".tsv":
        yield from ((img_id, None if skip(img_id) else record) for img_id, record in read_lxmert_tsv(path))
    else:
        source = open_regions(path)
        yield from ((img_id, None if skip(img_id) else source.load(img_id)) for img_id in source.keys())


def _halved(name, record, width):
    """The record with features as float16; DamagedImage where these are of another width or too large for it."""
    with np.errstate(over="ignore"):
        features = record["features"].astype(np.float16)
    if features.shape[1] != width:
        raise DamagedImage(name, f"has features of width {features.shape[1]}, the first image has {width}")
    if not np.isfinite(features).all():
        raise DamagedImage(name, "has features beyond 65,504, which float16 cannot hold")
    return {**record, "features": features}
