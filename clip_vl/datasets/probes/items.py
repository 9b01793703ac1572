"""The items of compositional probes: images and captions, and which of them belong together.

The other files of this folder read them; annotation files are foreign, so literals, paths and sizes are checked here.
"""

import ast
import hashlib
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from clip_vl.datasets.captions.source import path_below
from clip_vl.datasets.storage.tables import read_header, table_rows
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.text import whole_text

MAX_FILE = 512 * 2**20  # bytes of one annotation file; the largest official one has 60 MB
MAX_LITERAL = 200_000  # characters of one field with a list in it
MAX_CAPTION = 10_000


class Crop(NamedTuple):
    """An image or a part of it. name: what the annotation calls it, and in a `Plan` its path or `RowImage`
    box: left, top, right, bottom, or None
    """

    name: str
    box: tuple | None = None


class Item(NamedTuple):
    """kind (of the probe) "captions": caption 0 is true of images[0], the others are not;
    "images": captions[0] is true of image 0 and of no other; "winoground": caption k belongs to image k, k = 0, 1;
    "match": captions[0] is true of all the images together, or not, as `gold` says.
    """

    id: str
    groups: tuple  # of which scores are means; the first is the subset
    images: tuple
    captions: tuple
    gold: int = 0
    fold: str = ""  # items of one fold stay together when a threshold is calibrated


class Row(NamedTuple):
    """A line of the table: `metric` over the items of `groups`, all alike, or with `weights` a mean of group means."""

    label: str
    metric: str
    groups: tuple
    weights: tuple | None = None


@dataclass
class Probe:
    """name, kind as in `Item`, and tie: what a tie with the gold counts as under the official rule.

    folders: where images lie below --images_dir, in order of trying, with "{}" for the name
    inside:  image name -> `RowImage`, of images that lie in the annotations themselves
    defects: what is wrong with the data, counted;  files: annotation file -> sha256
    """

    name: str
    kind: str
    tie: str
    items: list
    rows: list
    folders: tuple = ("{}",)
    inside: dict = field(default_factory=dict)
    defects: Counter = field(default_factory=Counter)
    files: dict = field(default_factory=dict)
    facts: dict = field(default_factory=dict)


# ---- annotation files


def read_bytes(path, files=None):
    """The content of an annotation file, bounded; its sha256 goes into the dict `files`."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_FILE:
            raise DataError(f"{path} has more than {MAX_FILE:,} bytes; that is no annotation file of a probe")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    if files is not None:
        files[path.name] = hashlib.sha256(data).hexdigest()
    return data


def read_table(path, columns, files):
    """Yield (location, row) of a CSV file with a header that has these columns; location: "file:line"."""
    read_bytes(path, files)
    _, names = read_header(path, ",", ())
    if missing := sorted(set(columns) - set(names)):
        raise DataError(f"{path}:1: no column {missing[0]}; it has {', '.join(names)}")
    for line, row in table_rows(path, ","):
        yield f"{path}:{line}", dict(zip(names, row))


def literal_strings(text, location):
    """The strings of a Python list, set or tuple literal, in the order they are written in. Nothing is evaluated."""
    try:
        if len(text) > MAX_LITERAL:
            raise ValueError(f"it has {len(text):,} characters")
        node = ast.parse(text.strip(), mode="eval").body
        if not isinstance(node, ast.List | ast.Set | ast.Tuple):
            raise ValueError("it is no list")
        values = [ast.literal_eval(element) for element in node.elts if isinstance(element, ast.Constant)]
        if len(values) < len(node.elts) or not all(isinstance(value, str) for value in values):
            raise ValueError("something in it is no string")
        return [whole_text(value) for value in values]
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise DataError(f"{location}: {text!r:.60} is no literal list of strings: {error}") from None


@contextmanager
def expected_form(location):
    """Errors inside are those of the data: a DataError with the location."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        name = f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{location}: not of the expected form: {name}") from None


def text_of(entry, key):
    """entry[key], which must be text of some length."""
    value = entry[key]
    if not isinstance(value, str) or len(value) > MAX_CAPTION:
        raise ValueError(f"{key} {value!r:.60} is no text of at most {MAX_CAPTION:,} characters")
    return whole_text(value)


def box_of(left, top, width, height):
    """(left, top, right, bottom) in whole pixels of the position and size of a box."""
    left, top, width, height = (float(value) for value in (left, top, width, height))
    if not all(abs(value) < 1e6 for value in (left, top, width, height)) or width <= 0 or height <= 0:
        raise ValueError(f"the box {left:g}, {top:g}, {width:g}, {height:g} has no pixels")
    return int(left), int(top), int(left) + int(width), int(top) + int(height)


def one_folder(folder, pattern, what):
    """The files of a probe in its folder, in order of names; UserError where there are none."""
    folder = Path(folder)
    paths = [folder] if folder.is_file() else sorted(folder.glob(pattern))
    if not paths:
        raise UserError(f"no {pattern} below {folder}: {what}; see data/README.md")
    return paths


def find_images(probe, images_dir):
    """name -> path, or `RowImage`, of every image of a probe that is there. DataError for a name that leads out of the
    folder.
    """
    found = dict(probe.inside)
    for name in dict.fromkeys(crop.name for item in probe.items for crop in item.images if crop.name not in found):
        try:
            candidates = [Path(images_dir, path_below(images_dir, pattern.format(name))) for pattern in probe.folders]
        except ValueError as error:
            raise DataError(f"{probe.name}: {error}") from None
        path = next((path for path in candidates if path.is_file()), None)
        if path is not None:
            found[name] = path
    return found
