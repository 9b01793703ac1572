"""Classification sets in the files that torchvision reads; they must be on disk, nothing is downloaded."""

import hashlib
import inspect
import io
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.classes.class_set import ClassSet
from clip_vl.datasets.classes.names import benchmark_key, metric_of
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.colours import to_rgb

SETS = ("CIFAR10", "CIFAR100", "Country211", "DTD", "FashionMNIST", "FER2013", "FGVCAircraft", "Flowers102", "Food101",
        "GTSRB", "ImageNet", "Imagenette", "KMNIST", "MNIST", "OxfordIIITPet", "PCAM", "RenderedSST2", "StanfordCars",
        "STL10", "SVHN", "USPS")  # fmt: skip
SAMPLED = 256  # images whose content goes into the digest of a dataset


class NumberedImages:
    """Images of a torchvision dataset by their number."""

    def __init__(self, dataset, title):
        self.dataset, self.title = dataset, title

    def image(self, number):
        """uint8 (3, H, W)."""
        return torch.from_numpy(np.array(self._image(number))).permute(2, 0, 1)

    def __call__(self, number):
        """The image as the bytes of a PNG file."""
        buffer = io.BytesIO()
        self._image(number).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()

    def _image(self, number):
        try:
            return to_rgb(self.dataset[int(number)][0])
        except Exception as error:  # each set has its own
            raise DamagedImage(f"{self.title}, image {number}", f"cannot be read: {error}") from None

    def content(self):
        """A digest of some images, evenly spread."""
        digest = hashlib.sha256()
        for number in np.unique(np.linspace(0, len(self.dataset) - 1, min(SAMPLED, len(self.dataset))).astype(int)):
            digest.update(np.array(self._image(number)).tobytes())
        return digest.hexdigest()


def open_torchvision(name, split, datasets_dir):
    """The split of a dataset that torchvision finds below `datasets_dir`."""
    from torchvision import datasets

    known = {each.lower(): each for each in SETS}
    if name.lower() not in known:
        raise UserError(f"torchvision:{name} is not one of {', '.join(SETS)}")
    name, root = known[name.lower()], Path(datasets_dir)
    kind, title = getattr(datasets, name), f"torchvision:{known[name.lower()]} {split}"
    dataset = _opened(kind, name, split, root)
    labels = _labels(dataset, title)
    names = [_name(each) for each in getattr(dataset, "classes", None) or range(int(labels.max()) + 1)]
    reader = NumberedImages(dataset, title)
    content, ids = reader.content(), [str(number) for number in range(len(dataset))]
    return ClassSet(title, ids, reader, labels, names, [name, split, content], metric=metric_of(benchmark_key(name)))


def _opened(kind, name, split, root):
    accepted = inspect.signature(kind.__init__).parameters
    given = {"download": False} if "download" in accepted else {}
    if "train" in accepted:
        if split not in ("train", "test"):
            raise UserError(f"torchvision's {name} has no split {split!r}; it has train, test")
        given["train"] = split == "train"
    else:
        given["split"] = split
    try:
        return kind(root, **given)
    except Exception as error:  # RuntimeError for missing files, ValueError for a split, and others for damage
        reason = " ".join(str(error).split())
        if isinstance(error, ValueError) and "split" in reason:
            raise UserError(f"torchvision's {name} has no split {split!r}: {reason:.200}") from None
        raise DataError(
            f"torchvision's {name} cannot be read below {root} ({reason:.200}); nothing is downloaded"
        ) from None


def _labels(dataset, title):
    """int64 (N,): from the set's table where it has one, so that no image is decoded."""
    for name in ("targets", "labels", "_labels"):
        values = getattr(dataset, name, None)
        if values is not None and len(values) == len(dataset):
            return np.asarray(values, dtype=np.int64)
    if hasattr(dataset, "_samples") or hasattr(dataset, "samples"):
        return np.array([label for _, label in getattr(dataset, "_samples", None) or dataset.samples], dtype=np.int64)
    try:
        return np.array([int(dataset[number][1]) for number in range(len(dataset))], dtype=np.int64)
    except Exception as error:
        raise DataError(f"{title} cannot be read: {error}") from None


def _name(name):
    """ImageNet gives a tuple of synonyms, MNIST "7 - seven", folders words joined by underscores."""
    name = name[0] if isinstance(name, tuple | list) else str(name)
    return name.replace("_", " ")
