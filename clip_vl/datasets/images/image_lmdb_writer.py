"""Writes the LMDB of `image_lmdb`. Writing may be interrupted at any moment; running it again continues it."""

import io
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from PIL import Image

from clip_vl.datasets.images.canvas import resized_size
from clip_vl.datasets.images.decoding import DamagedImage, decode_image, jpeg_decoder, resize
from clip_vl.datasets.images.image_lmdb import HEADER, META_KEY, lmdb_key, pack_image, store_meta
from clip_vl.datasets.storage.lmdb_files import MAP_SIZE, check_length, close_reader
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_write

COMMIT_EVERY = 1000  # images per transaction: the most that an interruption can cost
JPEG_QUALITY = 90  # 30 % fewer bytes to decode than 95, a mean error of 2.4 levels of 255 against 1.8




def write_images(path, files, m=384, M=640, *, check=lambda file, data: None, workers=1, advance=lambda count: None):
    """Resize image files and write them into the LMDB at `path` under their names; names already in it are kept.

    Names must be unique. A JPEG that needs no resize is copied. `advance(n)` is called with the number of files just
    done. At the end the original sizes of all images are written to <path>/sizes.json as file name -> [height, width].
    check(file, data): raises DamagedImage for a file that differs from its recorded digest
    returns: a DamagedImage for each file that could not be read, which the LMDB lacks
    raises: UserError where the LMDB cannot be written, or holds images of another m and M
    """
    files = [Path(file) for file in files]
    jpeg_decoder()
    damaged = []
    with _writable(path, m, M) as environment, ThreadPoolExecutor(workers) as pool:
        for start in range(0, len(files), COMMIT_EVERY):
            batch = files[start : start + COMMIT_EVERY]
            with environment.begin(buffers=True) as transaction:
                new = [file for file in batch if transaction.get(lmdb_key(file.name)) is None]
            advance(len(batch) - len(new))
            values = {}
            for file, value in zip(new, pool.map(lambda file: _resized_value(file, m, M, check), new)):
                if isinstance(value, DamagedImage):
                    damaged.append(value)
                else:
                    values[lmdb_key(file.name)] = value
                advance(1)
            with environment.begin(write=True) as transaction:
                transaction.cursor().putmulti(values.items())
        _write_sizes(path, environment)
    return damaged


@contextmanager
def _writable(path, m, M):
    """The environment at `path`, open for writing, checked to hold images for (m, M), and closed at the end."""
    import lmdb

    try:
        close_reader(path)
        Path(path).mkdir(parents=True, exist_ok=True)
        with lmdb.open(str(path), map_size=MAP_SIZE, readahead=False) as environment:
            check_length(path, environment)
            wanted = store_meta(m, M)
            with environment.begin(write=True) as transaction:
                transaction.put(META_KEY, wanted, overwrite=False)
                found = transaction.get(META_KEY)
            if found != wanted:
                raise UserError(f"{path} holds {found.decode()}, not {wanted.decode()}; write to another folder")
            yield environment
    except (lmdb.Error, OSError) as error:
        raise UserError(f"{path} cannot be written: {error}; committed images are kept, run it again") from error


def _resized_value(file, m, M, check):
    """The value of an image file, or the DamagedImage that it raises."""
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
    return pack_image(file.name, original, data)


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
