"""The built-in scenes as a classification set: images of one object, whose class is its colour and shape."""

import re

from clip_vl.datasets.classes.class_set import ClassSet, FolderReader, checked_path
from clip_vl.datasets.images.collections import relative_path
from clip_vl.datasets.scenes.scene import ATTRIBUTES
from clip_vl.datasets.storage.tables import column_of, read_header, table_rows
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.engine.readers.text import read_lines

CLASSES = [f"{color} {shape}" for color in ATTRIBUTES["color"] for shape in ATTRIBUTES["shape"]]
SPLITS = {"train": "mscoco_train", "val": "mscoco_nominival", "test": "mscoco_minival"}  # scenes/*.jsonl
TABLES = {"train": "train", "val": "valid", "test": "test"}  # of --size pairs
THING = re.compile(
    "an? (?:{size}) ({color}) (?:{texture}) ({shape})".format(**{key: "|".join(v) for key, v in ATTRIBUTES.items()})
)


def open_scenes(root, split):
    """The images of one object in a data root that `clip_vl.shapes` wrote."""
    if split not in SPLITS:
        raise UserError(f"the built-in scenes have no split {split!r}; they have train, val, test")
    table = root / f"{TABLES[split]}.tsv"
    names, labels = (
        _of_table(root, table) if table.is_file() else _of_scenes(root / "scenes" / f"{SPLITS[split]}.jsonl")
    )
    reader = FolderReader(root)
    return ClassSet(f"{root} {split}", names, reader, labels, CLASSES, reader.content(names))


def _of_table(root, path):
    """Paths and classes of the descriptions that speak of one thing."""
    names, labels = [], []
    separator, columns = read_header(path, "tab", ())
    image, title = (column_of(path, columns, name, "dataset") for name in ("filepath", "title"))
    for _, row in table_rows(path, separator):
        things = THING.findall(row[title])
        if len(things) == 1:
            names.append(checked_path(path, root, row[image]))
            labels.append(CLASSES.index(" ".join(things[0])))
    return names, labels


def _of_scenes(path):
    names, labels = [], []
    try:
        for line in read_lines(path):
            scene = parse_json(line)
            if len(scene["objects"]) == 1:
                names.append(relative_path(scene["img_id"]))
                labels.append(CLASSES.index("{color} {shape}".format(**scene["objects"][0])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read as scenes: {error}; `python -m clip_vl.shapes` writes them") from None
    return names, labels
