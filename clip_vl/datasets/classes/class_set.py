"""A split of a classification set: images, the class of each, and its metric."""

import numpy as np
import torch

from clip_vl.datasets.captions.source import path_below
from clip_vl.datasets.images.decoding import DamagedImage, decode_image
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.random import numpy_rng

HELD_OUT = 0.2  # of each class, where a set has no validation split (ELEVATER, arXiv:2204.08790)


class ClassSet:
    """Images with classes; picklable, for loader workers.

    title:       what messages call it;  ids: list of str, one for each image, and the same in every run
    reader:      `reader(id)` -> bytes of an image file, or `reader.image(id)` -> uint8 (3, H, W). Raises DamagedImage
    labels:      int64 (N,); or bool (N, C) where an image may belong to several classes
    class_names: list of C str
    content:     JSON of all that the pixels depend on, such as sizes and times of the files
    metric:      accuracy, mean_per_class, mAP11 or auc;  crop: of EvalCrop's, where the set has one of its own
    """

    def __init__(self, title, ids, reader, labels, class_names, content, metric="accuracy", crop=None):
        self.title, self.ids, self.reader, self.class_names = title, ids, reader, list(class_names)
        self.labels, self.metric, self.crop = np.asarray(labels), metric, crop
        self.pixels_digest = digest_of({"ids": ids, "content": content})  # what features depend on
        self._check()

    def _check(self):
        if not len(self.ids):
            raise DataError(f"{self.title} holds no image")
        if self.multi_label:
            if self.labels.shape[1] != len(self.class_names):
                raise DataError(f"{self.title} has {self.labels.shape[1]} classes, and {len(self.class_names)} names")
        elif not (0 <= self.labels.min() and self.labels.max() < len(self.class_names)):
            wrong = int(np.flatnonzero((self.labels < 0) | (self.labels >= len(self.class_names)))[0])
            raise DataError(f"{self.title}: the class {self.labels[wrong]} of {self.ids[wrong]} is not one of "
                            f"0 to {len(self.class_names) - 1}")  # fmt: skip

    def __len__(self):
        return len(self.ids)

    @property
    def multi_label(self):
        return self.labels.ndim == 2

    @property
    def digest(self):
        """What results depend on: the pixels, the labels, the names."""
        return digest_of([self.pixels_digest, self.labels.tolist(), self.class_names])

    def read(self, row):
        """The bytes of the image file. Raises DamagedImage."""
        return self.reader(self.ids[row])

    def image(self, row):
        """uint8 (3, H, W). Raises DamagedImage."""
        if hasattr(self.reader, "image"):
            return self.reader.image(self.ids[row])
        return decode_image(self.read(row), f"{self.title}, {self.ids[row]}")


class FolderReader:
    """Image files below a folder."""

    def __init__(self, root):
        self.root = root

    def __call__(self, name):
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise DamagedImage(self.root / name, f"cannot be read: {error.strerror}") from None

    def content(self, names):
        """Size and time of each file: content that changes gets new features. Raises DamagedImage."""
        try:
            return [[s.st_size, s.st_mtime_ns] for s in ((self.root / name).stat() for name in names)]
        except OSError as error:
            raise DamagedImage(error.filename, f"cannot be read: {error.strerror}") from None


class ClassImages:
    """`images[(_, rows)]`: images uint8 (B, 3, S, S) and damaged [(id, sentence)] whose images are black."""

    def __init__(self, images, crop):
        self.images, self.crop = images, crop

    def __getitem__(self, key):
        views, damaged = [], []
        for row in map(int, key[1]):
            try:
                views.append(self.crop.view(self.images.image(row)))
            except DamagedImage as error:
                damaged.append((self.images.ids[row], str(error)))
                views.append(torch.zeros(3, self.crop.resolution, self.crop.resolution, dtype=torch.uint8))
        return {"images": torch.stack(views), "damaged": damaged}


def checked_path(location, root, path):
    """A path that a file names, relative to the folder in which it must lie. location: "file:line"."""
    try:
        return path_below(root, path.strip())
    except ValueError as error:
        raise DataError(f"{location}: {error}") from None


def held_out(labels, seed, share=HELD_OUT):
    """bool (N,): that share of each class, drawn at random, at least one and never all. labels: int (N,)."""
    chosen = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = np.flatnonzero(labels == label)
        count = min(max(1, round(share * len(rows))), len(rows) - 1)
        chosen[numpy_rng(seed, "held out", label).permutation(rows)[:count]] = True
    if not chosen.any():
        raise UserError("no class has two training images, so none can be held out: --valid_split or --C is needed")
    return chosen


def check_same_classes(one, other):
    """Raise DataError where two splits number their classes differently."""
    if one.class_names != other.class_names:
        missing = sorted(set(one.class_names) ^ set(other.class_names))
        reason = f"{missing[0]!r} is a class of one alone" if missing else "their order differs"
        raise DataError(f"{one.title} and {other.title} do not have the same classes: {reason}")
    if one.pixels_digest == other.pixels_digest:
        raise UserError(f"{one.title} and {other.title} are the same images: two splits must differ")
