"""An LMDB of resized JPEGs: one file instead of 180,000, and pictures that need no further resizing.

A key is a file name in UTF-8; a value is the image's original height and width, a digest, and the bytes of a JPEG whose
size follows the rule of `images.resized_size`. Writing may be interrupted at any moment; running it again continues it.
"""

import hashlib
import io
import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from clip_vl.datasets.images.canvas import resize, resized_size
from clip_vl.datasets.images.collections import COCO_VG, relative_path
from clip_vl.datasets.images.decoding import DamagedImage, decode_image, jpeg_decoder
from clip_vl.datasets.images.source import ImageSource, check_recorded
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_write

FORMAT = 1
COMMIT_EVERY = 1000  # images per transaction: the most that an interruption can cost
MAP_SIZE = 4 * 2**40  # bytes of address space, not of disk
JPEG_QUALITY = 90  # 30 % fewer bytes to decode than 95, a mean error of 2.4 levels of 255 against 1.8
META_KEY = b"\0store"  # no file name has a NUL in it
HEADER = struct.Struct("<II16s")  # original height, original width, digest


def store_path(data_root, m, M, collection=COCO_VG):
    """Where the store of a collection of images lies in a data root, for short side m and long side M."""
    name = "images" if collection == COCO_VG else f"images_{collection.name}"
    return Path(data_root) / "cache" / f"{name}_{m}_{M}.lmdb"


def _key(name):
    return os.fsencode(name)  # UTF-8; whatever bytes a file has for a name come back as they were


def _meta(m, M):
    """What a store says of itself."""
    return f"resized images, format {FORMAT}, short side {m}, long side at most {M}".encode()


def _pack(name, size, jpeg):
    """The value of an image: its original (height, width), a digest of name, size and content, and the JPEG."""
    return HEADER.pack(*size, _digest(name, size, jpeg)) + jpeg


def _unpack(name, value):
    """(height, width) and JPEG of a value; ValueError where it is not what was written under this name."""
    if len(value) < HEADER.size:
        raise ValueError(f"has only {len(value)} bytes")
    *size, digest = HEADER.unpack_from(value)
    jpeg = value[HEADER.size :]
    if digest != _digest(name, size, jpeg):
        raise ValueError("does not have the content that was written: its digest differs")
    return tuple(size), jpeg


def _digest(name, size, jpeg):
    digest = hashlib.blake2b(b"%b %d %d " % (_key(name), *size), digest_size=16)
    digest.update(jpeg)
    return digest.digest()


def _check_length(path, environment):
    """Raise DataError where the file is cut short: reading a map past the end of its file kills the process."""
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    found = Path(path, "data.mdb").stat().st_size
    if found < expected:
        raise DataError(f"{path}/data.mdb has {found:,} of its {expected:,} bytes; copy it again or build it anew")


# ---- writing ----


def write_images(path, files, m=384, M=640, *, check=lambda file, data: None, workers=1, advance=lambda count: None):
    """Resize image files and put them into the LMDB at `path` under their names; those already in it are left alone.

    Names must be unique. A JPEG that needs no resizing keeps its very bytes. `advance(n)` is called with the number of
    files just done. At the end the original sizes of all images in the store are written to <path>/sizes.json as
    file name -> [height, width].
    check(file, data): raises DamagedImage for a file that does not have its recorded content
    returns: a DamagedImage for each file that could not be read, and is not in the store
    raises: UserError where the store cannot be written, or holds pictures of another m and M
    """
    files = [Path(file) for file in files]
    jpeg_decoder()
    damaged = []
    with _writable(path, m, M) as environment, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), COMMIT_EVERY):
            batch = files[start : start + COMMIT_EVERY]
            with environment.begin(buffers=True) as transaction:
                new = [file for file in batch if transaction.get(_key(file.name)) is None]
            advance(len(batch) - len(new))
            values = {}
            for file, value in zip(new, pool.map(lambda file: _resized_value(file, m, M, check), new)):
                if isinstance(value, DamagedImage):
                    damaged.append(value)
                else:
                    values[_key(file.name)] = value
                advance(1)
            with environment.begin(write=True) as transaction:
                transaction.cursor().putmulti(values.items())
        _write_sizes(path, environment)
    return damaged


@contextmanager
def _writable(path, m, M):
    """The environment at `path`, open for writing and known to hold pictures for (m, M); closed at the end."""
    import lmdb

    try:
        _close_reader(path)
        Path(path).mkdir(parents=True, exist_ok=True)
        with lmdb.open(str(path), map_size=MAP_SIZE, readahead=False) as environment:
            _check_length(path, environment)
            with environment.begin(write=True) as transaction:
                transaction.put(META_KEY, _meta(m, M), overwrite=False)
                found = transaction.get(META_KEY)
            if found != _meta(m, M):
                raise UserError(f"{path} holds {found.decode()}, not {_meta(m, M).decode()}; write to another folder")
            yield environment
    except (lmdb.Error, OSError) as error:
        raise UserError(f"{path} cannot be written: {error}; what was committed is kept, run it again") from error


def _resized_value(file, m, M, check):
    """The value of an image file, or the DamagedImage that says why there is none."""
    try:
        data = file.read_bytes()
        check(file, data)
        image = decode_image(data, file)
    except OSError as error:
        return DamagedImage(file, f"cannot be read: {error.strerror}")
    except DamagedImage as error:
        return error
    original = tuple(image.shape[1:])
    size = resized_size(*original, m, M)
    if size != original or not data.startswith(b"\xff\xd8"):  # every JPEG starts with these
        data = _encode(resize(image, size))
    return _pack(file.name, original, data)


def _encode(image):
    """uint8 (3, h, w) -> JPEG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()


def _write_sizes(path, environment):
    """<path>/sizes.json from the headers of all values; replaced whole."""
    with environment.begin(buffers=True) as transaction:
        sizes = {
            os.fsdecode(bytes(key)): HEADER.unpack_from(value)[:2]
            for key, value in transaction.cursor()
            if key != META_KEY
        }
    atomic_write(Path(path, "sizes.json"), json.dumps(sizes).encode())


# ---- reading ----

_readers = {}  # path -> (process id, environment): LMDB lets a process open a file once


def _reader(path):
    """The read-only environment at `path`, opened once per process; a forked worker must not use its parent's."""
    import lmdb

    process, environment = _readers.get(path, (None, None))
    if process != os.getpid():
        if environment is not None:
            environment.close()  # the parent's, inherited
        # Without locks: the store may lie on a read-only disk, and a writer only ever adds to it.
        environment = lmdb.open(str(path), readonly=True, lock=False, readahead=False)
        _readers[path] = os.getpid(), environment
        try:
            _check_length(path, environment)
        except DataError:
            _close_reader(path)
            raise
    return environment


def _close_reader(path):
    _, environment = _readers.pop(Path(path), (None, None))
    if environment is not None:
        environment.close()


class ImageLMDB:
    """The images of a store, with the methods of `images.ImageSource`. It holds a path, so any worker can have a copy.

    Raises UserError where there is no store of pictures for (m, M), DataError where its file was cut short.
    """

    kind, blank = ImageSource.kind, ImageSource.blank

    def __init__(self, path, m=384, M=640, collection=COCO_VG):
        import lmdb

        self.path, self.collection = Path(path), collection
        jpeg_decoder()
        try:
            meta = self._get(META_KEY)
        except lmdb.Error as error:
            raise UserError(f"{path} is not an image store: {error}; `python -m clip_vl.prepare` writes one") from None
        if meta != _meta(m, M):
            found = "something else" if meta is None else meta.decode(errors="replace")
            raise UserError(f"{path} holds {found}, not {_meta(m, M).decode()}; `python -m clip_vl.prepare` builds it")

    def _get(self, key):
        with _reader(self.path).begin() as transaction:
            return transaction.get(key)

    def keys(self):
        """The names of all images, sorted."""
        import lmdb

        try:
            with _reader(self.path).begin() as transaction:
                return [os.fsdecode(key) for key in transaction.cursor().iternext(values=False) if key != META_KEY]
        except lmdb.Error as error:
            raise DataError(f"{self.path} is damaged: {error}; copy it again or build it anew") from None

    def get(self, name):
        """(original height, original width) and the JPEG bytes stored under a file name. Raises DamagedImage."""
        import lmdb

        try:
            value = self._get(_key(name))
            if value is None:
                raise ValueError("is not in the store")
            return _unpack(name, value)
        except (lmdb.Error, ValueError) as error:
            raise DamagedImage(f"{self.path}/{name}", str(error)) from None

    def read(self, img_id):
        """The stored JPEG bytes of an image. Raises DamagedImage."""
        return self.get(Path(relative_path(img_id, self.collection)).name)[1]

    def load(self, img_id, m=384, M=640, recorded_size=None):
        """The resized picture, uint8 (3, h, w), as `ImageSource.load` but for the JPEG's loss. Raises DamagedImage."""
        name = Path(relative_path(img_id, self.collection)).name
        original, jpeg = self.get(name)
        check_recorded(f"{self.path}/{name}", original, recorded_size)
        return resize(decode_image(jpeg, f"{self.path}/{name}"), resized_size(*original, m, M))
