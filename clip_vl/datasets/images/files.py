"""Image files of a folder: which extensions are read, and in which order."""

import functools
import os
import re
from collections import Counter
from itertools import chain

from clip_vl.engine.errors import DataError, printable

# Pillow's formats that are read, and their extensions in any case. Others of Pillow's start programs.
FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".jfif"),
    "PNG": (".png",),
    "WEBP": (".webp",),
    "GIF": (".gif",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
    "PPM": (".ppm", ".pgm"),
}
EXTENSIONS = tuple(chain.from_iterable(FORMATS.values()))
CODECS = {"WEBP": "webp", "JPEG2000": "jpg_2000", "AVIF": "avif"}  # what an installed Pillow may lack
NAMED = 8  # extensions or classes that a message lists
NO_DATA = ("__MACOSX", "Thumbs.db", "desktop.ini")  # files of operating systems


@functools.cache
def readable_formats():
    """The formats that the installed Pillow can decode."""
    from PIL import features

    return tuple(name for name in FORMATS if name not in CODECS or features.check(CODECS[name]))


@functools.cache
def readable_extensions():
    return frozenset(chain.from_iterable(FORMATS[name] for name in readable_formats()))


def extension(name):
    """The extension of a file's name, in lower case and with its dot."""
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (text, not files)


def is_image(name):
    return extension(name) in readable_extensions()


def is_hidden(name):
    """Whether a file or folder is skipped, such as `.DS_Store`, `._a.jpg` and `__MACOSX`."""
    return name.startswith(".") or name in NO_DATA


def walk(folder):
    """Yield (path below the folder, names of its files) of the folder and all folders below it, without hidden ones.

    Links to folders are followed, each folder once. Raises DataError for a folder that cannot be read.
    """
    seen = set()
    for root, folders, files in os.walk(folder, onerror=_refuse, followlinks=True):
        status = os.stat(root)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        below = os.path.relpath(root, folder)
        yield "" if below == os.curdir else f"{below}/", sorted(name for name in files if not is_hidden(name))


def _refuse(error):
    raise DataError(f"{error.filename} cannot be read: {error.strerror}")


def list_images(folder):
    """(sorted paths of the images below the folder, Counter {extension: number of other files})."""
    images, others = [], Counter()
    for below, files in walk(folder):
        for name in files:
            if is_image(name):
                images.append(below + name)
            else:
                others[extension(name) or "without an extension"] += 1
    return sorted(images), others


def ordered(names):
    """Names of class folders, sorted as numbers if all are numbers, else as text."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def natural_key(name):
    """A sort key by which class_2 comes before class_10."""
    return [(int(part), "") if index % 2 else (-1, part) for index, part in enumerate(re.split(r"([0-9]+)", name))]


def unread_files(others):
    """Counts of files by extension, Counter {extension: number}, as `report_left_out` takes them."""
    ranked = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    counts = ", ".join(f"{count:,} {printable(name)}" for name, count in ranked[:NAMED])
    more = ", ..." * (len(ranked) > NAMED)
    return {f"no image format that is read, {counts}{more}": (others.total(), "")} if others else {}
