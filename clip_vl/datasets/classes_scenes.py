"""The built-in scenes as a classification set: pictures of one thing, whose class is its colour and shape."""

import csv
import json
import re

from clip_vl.datasets.class_set import ClassSet, FolderReader, checked_path
from clip_vl.datasets.images import relative_path
from clip_vl.datasets.scenes import ATTRIBUTES
from clip_vl.engine.errors import DataError, UserError

CLASSES = [f"{color} {shape}" for color in ATTRIBUTES["color"] for shape in ATTRIBUTES["shape"]]
SPLITS = {"train": "mscoco_train", "val": "mscoco_nominival", "test": "mscoco_minival"}  # scenes/*.jsonl
TABLES = {"train": "train", "val": "valid", "test": "test"}  # of --size pairs
THING = re.compile(
    "an? (?:{size}) ({color}) (?:{texture}) ({shape})".format(**{key: "|".join(v) for key, v in ATTRIBUTES.items()})
)


def open_scenes(root, split):
    """The pictures of one thing of a data root that `clip_vl.shapes` wrote."""
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
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            things = THING.findall(row["title"])
            if len(things) == 1:
                names.append(checked_path(path, root, row["filepath"]))
                labels.append(CLASSES.index(" ".join(things[0])))
    return names, labels


def _of_scenes(path):
    names, labels = [], []
    try:
        for line in path.read_text(encoding="utf-8").splitlines():
            scene = json.loads(line)
            if len(scene["objects"]) == 1:
                names.append(relative_path(scene["img_id"]))
                labels.append(CLASSES.index("{color} {shape}".format(**scene["objects"][0])))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} cannot be read as scenes: {error}; `python -m clip_vl.shapes` writes them") from None
    return names, labels
