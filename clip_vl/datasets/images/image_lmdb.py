"""An LMDB of resized JPEGs: one file instead of 180,000, and images that need no further resizing.

A key is a file name in UTF-8; a value is the image's original height and width, a digest, and the bytes of a JPEG whose
size is that of `canvas.resized_size`. `image_lmdb_writer` writes it.
"""

import hashlib
import os
import struct
from pathlib import Path

from clip_vl.datasets.images.canvas import resized_size
from clip_vl.datasets.images.collections import COCO_VG, relative_path
from clip_vl.datasets.images.decoding import DamagedImage, decode_image, jpeg_decoder, resize
from clip_vl.datasets.images.image_folders import ImageFolders, check_recorded
from clip_vl.datasets.storage.lmdb_files import open_reader
from clip_vl.engine.errors import DataError, UserError

FORMAT = 1
META_KEY = b"\0store"  # no file name has a NUL in it
HOW_TO_BUILD = "`python -m clip_vl.prepare images` builds it"
HEADER = struct.Struct("<II16s")  # original height, original width, digest


def store_path(data_root, m, M, collection=COCO_VG):
    """The LMDB of a collection in a data root, for short side m and long side M."""
    name = "images" if collection == COCO_VG else f"images_{collection.name}"
    return Path(data_root) / "cache" / f"{name}_{m}_{M}.lmdb"


def lmdb_key(name):
    return os.fsencode(name)  # UTF-8; other bytes of a file name are kept


def store_meta(m, M):
    """The description that an LMDB holds of its images."""
    return f"resized images, format {FORMAT}, short side {m}, long side at most {M}".encode()


def pack_image(name, size, jpeg):
    """The value of an image: its original (height, width), a digest of name, size and content, and the JPEG."""
    return HEADER.pack(*size, _digest(name, size, jpeg)) + jpeg


def _unpack(name, value):
    """(height, width) and JPEG of a value; ValueError where it differs from what was written under this name."""
    if len(value) < HEADER.size:
        raise ValueError(f"has only {len(value)} bytes")
    *size, digest = HEADER.unpack_from(value)
    jpeg = value[HEADER.size :]
    if digest != _digest(name, size, jpeg):
        raise ValueError("does not have the content that was written: its digest differs")
    return tuple(size), jpeg


def _digest(name, size, jpeg):
    digest = hashlib.blake2b(b"%b %d %d " % (lmdb_key(name), *size), digest_size=16)
    digest.update(jpeg)
    return digest.digest()


class ImageLMDB:
    """The images of an LMDB, with the methods of `ImageFolders`. No file stays open in a copy for a loader worker.

    Raises UserError where there is no LMDB of images for (m, M), DataError where its file was cut short.
    """

    kind, blank = ImageFolders.kind, ImageFolders.blank

    def __init__(self, path, m=384, M=640, collection=COCO_VG):
        import lmdb

        self.path, self.collection = Path(path), collection
        jpeg_decoder()
        try:
            meta = self._get(META_KEY)
        except lmdb.Error as error:
            raise UserError(f"{path} is not an image LMDB: {error}; {HOW_TO_BUILD}") from None
        wanted = store_meta(m, M)
        if meta != wanted:
            found = "something else" if meta is None else meta.decode(errors="replace")
            raise UserError(f"{path} holds {found}, not {wanted.decode()}; {HOW_TO_BUILD}")

    def _get(self, key):
        with open_reader(self.path).begin() as transaction:
            return transaction.get(key)

    def keys(self):
        """The names of all images, sorted."""
        import lmdb

        try:
            with open_reader(self.path).begin() as transaction:
                return [os.fsdecode(key) for key in transaction.cursor().iternext(values=False) if key != META_KEY]
        except lmdb.Error as error:
            raise DataError(f"{self.path} is damaged: {error}; copy it again or build it anew") from None

    def get(self, name):
        """(original height, original width) and the JPEG bytes stored under a file name. Raises DamagedImage."""
        import lmdb

        try:
            value = self._get(lmdb_key(name))
            if value is None:
                raise ValueError("is not in the store")
            return _unpack(name, value)
        except (lmdb.Error, ValueError) as error:
            raise DamagedImage(f"{self.path}/{name}", str(error)) from None

    def read(self, img_id):
        """The stored JPEG bytes of an image. Raises DamagedImage."""
        return self.get(Path(relative_path(img_id, self.collection)).name)[1]

    def load(self, img_id, m=384, M=640, recorded_size=None):
        """The resized image, uint8 (3, h, w), equal to `ImageFolders.load` up to JPEG loss. Raises DamagedImage."""
        name = Path(relative_path(img_id, self.collection)).name
        original, jpeg = self.get(name)
        check_recorded(f"{self.path}/{name}", original, recorded_size)
        return resize(decode_image(jpeg, f"{self.path}/{name}"), resized_size(*original, m, M))
