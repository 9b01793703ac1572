"""Classification sets as captioned images: a folder for each class, whose name fills a prompt template.

A folder may hold, or stand beside, `classnames.txt` (lines "folder<tab>name", or a name for each folder in the order of
the classes, which is that of the numbers where all folders are numbers) and `templates.txt` (a line for each template,
with {} where the name goes).
"""

import hashlib
from collections import Counter
from pathlib import Path

from clip_vl.datasets.captions.pair_folders import SIDECARS, are_pairs, find_sidecars
from clip_vl.datasets.captions.source import checked_below
from clip_vl.datasets.captions.table import CaptionTable, Record, build_table
from clip_vl.datasets.classes.prompts import TEMPLATES, warn_of_names
from clip_vl.datasets.images.files import NAMED, is_hidden, is_image, list_images, natural_key, ordered, unread_files
from clip_vl.datasets.storage.left_out import report_left_out
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError, printable
from clip_vl.engine.readers.text import raw_bytes, read_lines

SPLITS = {"train", "training", "val", "valid", "validation", "dev", "test", "testing"}


def open_classes(folder, cache_root):
    """The images of the subfolders of `folder`, each with its class and as many captions as there are templates."""
    folder = Path(folder)
    classes = read_class_folders(folder)
    names, templates = class_names(folder, list(classes)), templates_beside(folder)
    warn_of_names(names)
    listing = {"classes": [_listing_digest([name, *found]) for name, found in classes.items()]}

    def records():
        for label, (name, found) in enumerate(classes.items()):
            for image in found:
                yield Record(checked_below(folder, f"{name}/{image}"), [], label)

    table, digest = build_table(cache_root, folder, listing, records)
    return ClassTable(table, digest, folder, names, templates)


def _listing_digest(names):
    return hashlib.sha256(raw_bytes("\n".join(names))).hexdigest()


def read_class_folders(root):
    """{name of a subfolder: sorted paths below it of its images} in the order of the classes.

    Says which files are left out and which classes are empty. Raises UserError where there are no subfolders.
    """
    entries = [entry for entry in Path(root).iterdir() if not is_hidden(entry.name)]
    names = ordered([entry.name for entry in entries if entry.is_dir()])
    if not names:
        raise UserError(f"{root} has no subfolders; a folder for each class was expected")
    if len(names) > 1 and SPLITS.issuperset(map(str.lower, names)):
        raise UserError(f"{root} has a folder for each split ({', '.join(names)}) and none for classes; name one")
    found = {name: list_images(Path(root, name)) for name in names}
    others = sum((counts for _, counts in found.values()), Counter())
    loose = [entry.name for entry in entries if is_image(entry.name) and not entry.is_dir()]
    num_images = sum(len(images) for images, _ in found.values())
    empty = [name for name, (images, _) in found.items() if not images]
    if others.keys() & set(SIDECARS):
        _check_captions(root, names)
    report_left_out(root, unread_files(others), num_images, noun="files")
    in_no_class = {"in no class folder": (len(loose), printable(min(loose, default="")))}
    report_left_out(root, in_no_class, num_images, noun="images")
    if empty:
        dist.print0(f"warning: {root}: {len(empty):,} of {len(names):,} classes have no image: "
                    f"{', '.join(map(repr, empty[:NAMED]))}{', ...' * (len(empty) > NAMED)}")  # fmt: skip
    return {name: images for name, (images, _) in found.items()}


def _check_captions(root, names):
    """Raise UserError for pairs in numbered folders, as img2dataset writes them; say it of pairs in other folders."""
    found, _ = find_sidecars(root)
    count = sum(map(bool, found.values()))
    if are_pairs(root, found) and all(map(str.isdigit, names)):
        raise UserError(f"{root} holds {count:,} images with captions beside them in numbered folders: pairs, not "
                        "classes; --train_data, --valid_data and retrieval's --test read pairs")  # fmt: skip
    if count:
        dist.print0(f"warning: {root}: {count:,} of {len(found):,} images have a text beside them, which is not used: "
                    "the folders are taken for classes")  # fmt: skip


def warn_of_order(path, folders):
    """Warn where names are given by order and numbered folders are sorted as text."""
    by_number = sorted(folders, key=natural_key)
    if by_number != folders:
        index = next(index for index, name in enumerate(folders) if name != by_number[index])
        dist.print0(f"warning: {path} gives names in the order of the folders, which are sorted as text: name {index} "
                    f"is that of {folders[index]!r}; lines 'folder<tab>name' are safe")  # fmt: skip


def _lines_beside(folder, name):
    """(path, lines) of the file in the folder or beside it; (None, []) without one."""
    for path in (folder / name, folder.parent / name):
        if path.is_file():
            return path, [line.strip(" ") for line in read_lines(path) if line.strip()]
    return None, []


def class_names(folder, classes):
    """The names of the class folders `classes`, [str]: of classnames.txt, or their own with spaces for `_`."""
    path, lines = _lines_beside(folder, "classnames.txt")
    if path is None:
        return [name.replace("_", " ") for name in classes]
    if all("\t" in line for line in lines):
        known = dict(line.split("\t", 1) for line in lines)
        missing = [name for name in classes if name not in known]
        if missing:
            raise DataError(f"{path} names no class for the folder {missing[0]!r}")
        return [known[name].strip() for name in classes]
    if len(lines) != len(classes):
        raise DataError(f"{path} has {len(lines)} names for the {len(classes)} subfolders of {folder}")
    warn_of_order(path, classes)
    return [line.strip() for line in lines]


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
