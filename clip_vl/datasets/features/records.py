"""A record of precomputed features, a flat dict of str -> numpy array, int, float or str, as bytes with a digest.

What both containers of `feature_store` have in common: a record's bytes, what a store says of itself, and their errors.
Arrays are encoded as the msgpack-numpy package does it. Files may come from anyone: reading one runs no code.
"""

import hashlib
import math
import re
from contextlib import contextmanager

import numpy as np

from clip_vl.datasets.images.collections import relative_path
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.json_files import parse_json

FORMAT = 1
MAX_RECORD = 2**30  # bytes of a record: what claims more is damaged
LZ4_MAGIC = b"\x04\x22\x4d\x18"
DIGEST_SIZE = 16
DTYPES = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")  # plain numbers: no objects, no structures, no strings
FIELD = re.compile(r"\w[\w.-]*")


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


def to_msgpack(record):
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


def record_digest(img_id, payload):
    digest = hashlib.blake2b(record_key(img_id) + b"\0", digest_size=DIGEST_SIZE)
    digest.update(payload)
    return digest


def record_key(img_id):
    """An image id as a key; DataError unless it is a plain file name, which is also a plain name of an HDF5 group."""
    relative_path(img_id)
    if img_id in (".", ".."):
        raise DataError(f"img_id {img_id!r} is not a plain file name")
    return img_id.encode()


def pack_value(img_id, record):
    """The LMDB value of a plain record: a digest of key and content, then an lz4 frame of msgpack."""
    import lz4.frame

    data = to_msgpack(record)
    if len(data) > MAX_RECORD:
        raise ValueError(f"has {len(data):,} bytes; the limit is {MAX_RECORD:,}")
    payload = lz4.frame.compress(data)
    return record_digest(img_id, payload).digest() + payload


def unpack_value(img_id, value):
    """The record of an LMDB value; ValueError or RuntimeError where it is not what was written under this id.

    A value may also lack the digest, as CLIP-ViL's tool writes it: then only the form of its content is checked.
    """
    digest, payload = value[:DIGEST_SIZE], value[DIGEST_SIZE:]
    if not payload.startswith(LZ4_MAGIC) or record_digest(img_id, payload).digest() != digest:
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
def readable(path):
    """What a library raises in the block for a damaged file becomes a DataError that names the file."""
    try:
        with damage(path):
            yield
    except DamagedImage as error:
        raise DataError(f"{error}; copy the store again or write it anew") from None


# ---- what a store says of itself ----


@contextmanager
def writing(path):
    """What goes wrong on the disk in the block becomes a UserError."""
    import lmdb

    try:
        yield
    except (lmdb.Error, OSError, RuntimeError) as error:  # h5py raises either of the latter
        raise UserError(f"{path} cannot be written: {error}; what was committed is kept, run it again") from error


def content(meta):
    """What the writer said, without what the store says of itself."""
    return {name: value for name, value in meta.items() if name not in ("format", "complete")}


def full_meta(meta, complete):
    return {**meta, "format": FORMAT, "complete": complete}


def check_meta(path, found, wanted):
    """Raise UserError where the store at `path` is of another format or does not hold what it is to hold."""
    if found["format"] not in (0, FORMAT):
        raise UserError(f"{path} has format {found['format']}, this program reads {FORMAT}; use the one that wrote it")
    if wanted is not None and content(found) != wanted:
        raise UserError(f"{path} holds {content(found)}, not {wanted}; write to another store")


def parsed_meta(path, text):
    """The meta of a store, checked."""
    try:
        meta = parse_json(text)
        meta["format"], meta["complete"]
    except (ValueError, TypeError, KeyError):
        raise DataError(f"{path} does not say what it holds: its meta record is damaged; write it anew") from None
    check_meta(path, meta, None)
    return meta
