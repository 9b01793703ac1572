"""What every source of captioned images offers, whatever its files are, and which paths a file may name."""

import hashlib
import os
import re

import numpy as np

from clip_vl.engine.errors import DataError
from clip_vl.engine.readers.text import raw_bytes

REMOTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
ESCAPED = re.compile("[\udc80-\udcff]")  # bytes of a name that is not UTF-8, as Python holds them


class CaptionSource:
    """Rows of one image with its captions and perhaps a class. Picklable, and cheap for every loader worker.

    A source has `len()`, name(row), read(row), label(row), num_captions(row), text_number(row, index), text(number)
    and texts_of_first(rows); the rest follows. Texts are numbered: the images of a class share theirs.
    digest:      hexadecimal str of all that rows and captions are made of, for the keys of caches
    num_classes: one more than the largest label
    image_files: whether `name` is the path of a file that holds the image alone
    changed:     what is done to images and texts after reading, which the digest does not include; {} for nothing
    """

    num_classes = 0
    image_files = True
    changed = {"image": {}, "text": {}}

    def name(self, row):
        """What messages call the image."""
        raise NotImplementedError

    def read(self, row):
        """The bytes of the image file. Raises DamagedImage."""
        raise NotImplementedError

    def label(self, row):
        """The class, -1 for none."""
        return -1

    def texts_of_first(self, rows):
        """How many texts, from number 0, the first rows have."""
        raise NotImplementedError

    @property
    def num_texts(self):
        return self.texts_of_first(len(self))

    def image_id(self, row):
        """The same 63-bit number for the same image."""
        return int.from_bytes(hashlib.blake2b(raw_bytes(self.name(row)), digest_size=8).digest(), "little") >> 1

    def caption_index(self, row, rng):
        """Index of the caption to train on this time; nothing is drawn where there is one caption."""
        count = self.num_captions(row)
        return int(rng.integers(count)) if count > 1 else 0

    def caption(self, row, rng):
        return self.text(self.text_number(row, self.caption_index(row, rng)))

    def for_crop(self, crop):
        """(source, crop) that together give the images a dual encoder sees."""
        return self, crop

    def captions(self, row):
        return [self.text(self.text_number(row, index)) for index in range(self.num_captions(row))]


class NumberedPairs:
    """The images and texts of a source by number: each image once, however many rows it has, with all of its texts.

    rows: (N,) of the images;  numbers: (M,) of the texts;  image_of_text: (M,), positions in `rows`
    """

    def __init__(self, source):
        self.source = source
        position, rows, numbers, owners = {}, [], [], []
        for row in range(len(source)):
            image = position.setdefault(source.image_id(row), len(rows))
            if image == len(rows):
                rows.append(row)
            found = [source.text_number(row, index) for index in range(source.num_captions(row))]
            numbers += found
            owners += [image] * len(found)
        self.rows, self.numbers, self.image_of_text = np.array(rows), np.array(numbers), np.array(owners)


def is_remote(path):
    """Whether it is an address such as s3://bucket/file."""
    return REMOTE.match(path) is not None


def path_below(root, path):
    """`path` relative to the folder `root`, in which it must lie; ValueError names what is wrong.

    Decided by the names alone: a folder of images that is a link to another disk is its owner's business.
    """
    if is_remote(path):
        raise ValueError(
            f"{path!r:.80} is a remote address, and training fetches nothing: download it and name the file"
        )
    if not path or not ESCAPED.sub("", path).isprintable():
        raise ValueError(f"{path!r:.80} is no path of an image")
    relative = os.path.normpath(path)
    if os.path.isabs(relative):  # noqa: PTH117 (text, not files)
        relative = os.path.relpath(relative, os.path.abspath(root))  # noqa: PTH100
        if _leaves(relative):
            raise ValueError(f"{path!r:.80} is not below {root}; --images_dir names the folder of the images")
    if relative == os.curdir or _leaves(relative):
        raise ValueError(f"{path!r:.80} leaves the folder of the images, {root}; --images_dir names it")
    return relative


def checked_below(root, path):
    """`path_below` for the names of files in a folder; DataError instead of ValueError."""
    try:
        return path_below(root, path)
    except ValueError as error:
        raise DataError(f"{root}: {error}") from None


def _leaves(relative):
    return relative == os.pardir or relative.startswith(os.pardir + os.sep)
