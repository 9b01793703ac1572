"""The images of a collection in a data root: their names, and their sizes, read once from the headers of the files."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from clip_vl.datasets.images.collections import COCO_VG, LIST, relative_path, size_key
from clip_vl.datasets.images.decoding import DamagedImage, read_image_size
from clip_vl.datasets.storage.json_stream import iterate_json_list, read_json
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_write
from clip_vl.engine.readers.text import written

UNREADABLE = "unreadable_images.txt"
READERS = 16  # threads: a header takes 0.05 ms of processor time and, on a network disk, several ms of waiting
BLOCK = 4096  # images measured between two checks of the time
SAVE_SECONDS = 30


def list_collection(root, collection=COCO_VG):
    """Sorted paths below the root of the images of a collection that an annotation can name, and of other entries."""
    images, others = [], []
    for folder in collection.folders.values():
        try:
            names = [entry.name for entry in Path(root, folder).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name in sorted(set(names) - {Path(collection.sizes).name, UNREADABLE, LIST, f"{LIST}.part"}):
            path = f"{folder}/{name}"
            (images if _can_be_named(path, collection) else others).append(path)
    return images, others


def _can_be_named(path, collection):
    try:
        return relative_path(Path(path).name.removesuffix(collection.suffix), collection) == path
    except DataError:
        return False


@dataclass
class Measured:
    """Result of `measure_images`: [height, width] by published key, how many are new, reasons by unreadable path."""

    sizes: dict
    new: int = 0
    unreadable: dict = field(default_factory=dict)

    def usable(self, images):
        """The keys of those `images` that have a size."""
        return {key for key in map(size_key, images) if key in self.sizes}


def measure_images(root, images, collection=COCO_VG):
    """Add the sizes of `images`, paths below the root, to the collection's file of sizes; its entries are kept.

    Only headers are read. The file is replaced as a whole every half minute and at the end, also when interrupted, so
    that a repeat continues. Unreadable images have no entry: the file lists the usable ones.
    """
    path_of_sizes = Path(root, collection.sizes)
    result = Measured(read_sizes(path_of_sizes))
    unknown = [path for path in images if size_key(path) not in result.sizes]
    saved_at, saved = time.monotonic(), 0
    try:
        for path, size, reason in tqdm(_measure(root, unknown), "sizes", len(unknown), unit="image", disable=None):
            if reason:
                result.unreadable[path] = reason
                continue
            result.sizes[size_key(path)] = size
            result.new += 1
            if result.new % BLOCK == 0 and time.monotonic() - saved_at > SAVE_SECONDS:
                _replace(path_of_sizes, json.dumps(result.sizes))
                saved_at, saved = time.monotonic(), result.new
    finally:
        if result.new > saved:
            _replace(path_of_sizes, json.dumps(result.sizes))
    return result


def _measure(root, images):
    """(path, [height, width], None) or (path, None, reason) of each image, in order."""

    def measure(path):
        try:
            return path, list(read_image_size(Path(root, path))), None
        except DamagedImage as error:
            return path, None, error.reason

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(images), BLOCK):
            yield from pool.map(measure, images[start : start + BLOCK])


def read_sizes(path):
    """The content of a width_heigths.json, {} where there is none."""
    if not path.exists():
        return {}
    sizes = read_json(path)
    if not isinstance(sizes, dict) or not all(_is_size(size) for size in sizes.values()):
        raise DataError(f'{path} must look like {{"data/mscoco/val2014/a.jpg": [height, width]}}; delete it and repeat')
    return sizes


def save_unreadable(root, unreadable, collection=COCO_VG):
    """Write unreadable_images.txt, a line "path<tab>reason" per image, or remove it where there is none.

    It is in the root for COCO and Visual Genome, otherwise beside the file of sizes; returns its path.
    """
    path = Path(root, UNREADABLE) if collection == COCO_VG else Path(root, collection.sizes).with_name(UNREADABLE)
    before = path.read_bytes() if path.exists() else b""
    text = "".join(f"{name}\t{' '.join(reason.split())}\n" for name, reason in sorted(unreadable.items()))
    if text and written(text) != before:
        _replace(path, text)
    elif before and not text:
        path.unlink()
    return path


def count_absent(path, usable, collection=COCO_VG, images_of=("img_id",)):
    """Count the entries of an annotation file whose image is not usable.

    usable:    keys of images, as `Measured.usable` gives them
    images_of: the keys of an entry that name its images
    returns:   the number of entries, of those without image, and the img_id of the first of these (or None)
    """
    entries, absent, example = 0, 0, None
    for line, entry in tqdm(iterate_json_list(path), path.name, unit="entry", disable=None):
        entries += 1
        img_ids = [entry.get(key) if isinstance(entry, dict) else None for key in images_of]
        for key, img_id in zip(images_of, img_ids):
            if not isinstance(img_id, str):
                raise DataError(f"{path}:{line}: an entry must be an object with the key {key!r}, the name of an image")
        missing = [img_id for img_id in img_ids if not _is_usable(img_id, usable, collection)]
        if missing:
            absent += 1
            example = example or missing[0]
    return entries, absent, example


def _is_usable(img_id, usable, collection):
    try:
        return size_key(relative_path(img_id, collection)) in usable
    except DataError:  # a name that would leave the image folders
        return False


def _is_size(size):
    return isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)


def _replace(path, text):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(path, written(text))
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}; run this where it is writable") from error
