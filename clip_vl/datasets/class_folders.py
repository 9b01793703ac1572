"""Classification sets as captioned images: a folder for each class, whose name fills a prompt template.

A folder may hold, or stand beside, `classnames.txt` (lines "folder<tab>name", or a name for each folder in sorted
order) and `templates.txt` (a line for each template, with {} where the name goes).
"""

import hashlib
from pathlib import Path

from clip_vl.datasets.caption_source import path_below
from clip_vl.datasets.caption_table import CaptionTable, Record, build_table
from clip_vl.engine.errors import DataError, UserError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif")
TEMPLATES = (
    "a photo of a {}.",
    "a picture of the {}.",
    "a close view of a {}.",
    "a {} seen from far away.",
    "a dark photo of a {}.",
    "a bright photo of the {}.",
    "a drawing of a {}.",
    "an image that shows a {}.",
)


def open_classes(folder, cache_root):
    """The images of the subfolders of `folder`, each with its class and as many captions as there are templates."""
    folder = Path(folder)
    classes = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise UserError(f"{folder} has no subfolders; a folder for each class was expected")
    names, templates = class_names(folder, classes), templates_beside(folder)
    listing = {"classes": [_listing_digest(path) for path in classes]}

    def records():
        for label, path in enumerate(classes):
            yield from (Record(path_below(folder, f"{path.name}/{name}"), [], label) for name in image_names(path))

    table, digest = build_table(cache_root, folder, listing, records)
    return ClassTable(table, digest, folder, names, templates)


def image_names(folder):
    """Sorted names of the image files below a class's folder."""
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return sorted(str(path.relative_to(folder)) for path in found)


def _listing_digest(folder):
    return hashlib.sha256("\n".join([folder.name, *image_names(folder)]).encode()).hexdigest()


def _lines_beside(folder, name):
    """(path, lines) of the file in the folder or beside it; (None, []) without one."""
    for path in (folder / name, folder.parent / name):
        if path.is_file():
            try:
                return path, [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} cannot be read as UTF-8 text: {error}") from None
    return None, []


def class_names(folder, classes):
    path, lines = _lines_beside(folder, "classnames.txt")
    if path is None:
        return [folder.name.replace("_", " ") for folder in classes]
    if all("\t" in line for line in lines):
        known = dict(line.split("\t", 1) for line in lines)
        missing = [folder.name for folder in classes if folder.name not in known]
        if missing:
            raise DataError(f"{path} names no class for the folder {missing[0]!r}")
        return [known[folder.name].strip() for folder in classes]
    if len(lines) != len(classes):
        raise DataError(f"{path} has {len(lines)} names for the {len(classes)} subfolders of {folder}")
    return lines


def templates_beside(folder):
    path, lines = _lines_beside(folder, "templates.txt")
    for line in lines:
        if "{}" not in line:
            raise DataError(f"{path}: the template {line!r:.60} has no {{}} for the name of the class")
    return tuple(lines) or TEMPLATES


class ClassTable(CaptionTable):
    """Text number c * T + t is template t, of T, with the name of class c: all images of a class share theirs."""

    def __init__(self, folder, digest, images, names, templates):
        super().__init__(folder, digest, images)
        self.names, self.templates, self.num_classes = names, templates, len(names)
        self.digest = hashlib.sha256(repr((digest, list(names), list(templates))).encode()).hexdigest()
        self.table_digest = digest

    def __reduce__(self):
        return type(self), (self.folder, self.table_digest, self.images, self.names, self.templates)

    def num_captions(self, row):
        return len(self.templates)

    def text_number(self, row, index):
        return self.label(row) * len(self.templates) + index

    def texts_of_first(self, rows):
        return len(self.names) * len(self.templates) if rows else 0

    def text(self, number):
        label, template = divmod(number, len(self.templates))
        return self.templates[template].replace("{}", self.names[label])
