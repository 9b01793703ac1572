"""SugarCrepe (arXiv:2306.14610): a COCO image, its caption, a fluent false one; seven subsets in three families."""

from collections import Counter
from pathlib import Path

from clip_vl.datasets.probes.items import Crop, Item, Probe, Row, expected_form, read_bytes, text_of
from clip_vl.datasets.storage.json_stream import read_json
from clip_vl.engine.errors import DataError, UserError

FAMILIES = {
    "replace": ("replace_obj", "replace_att", "replace_rel"),
    "swap": ("swap_obj", "swap_att"),
    "add": ("add_obj", "add_att"),
}
SUBSETS = tuple(subset for family in FAMILIES.values() for subset in family)


def read_sugarcrepe(folder):
    """Those of the seven <folder>/<subset>.json that are there; subsets, families, all: over items and over subsets."""
    probe = Probe("sugarcrepe", "captions", "wrong", [], [], ("{}", "val2017/{}", "mscoco/val2017/{}"))
    paths = [path for subset in SUBSETS if (path := Path(folder, f"{subset}.json")).is_file()]
    if not paths:
        raise UserError(f"none of {', '.join(SUBSETS)} (.json) is in {folder}; see data/README.md")
    triples = Counter()
    for path in paths:
        read_bytes(path, probe.files)
        content = read_json(path)
        if not isinstance(content, dict):
            raise DataError(f"{path} should hold an object of numbered entries, not a {type(content).__name__}")
        for key, entry in content.items():
            with expected_form(f"{path}: entry {key!r:.40}"):
                captions = text_of(entry, "caption"), text_of(entry, "negative_caption")
                item = Item(f"{path.stem}/{int(key)}", (path.stem,), (Crop(text_of(entry, "filename")),), captions)
            probe.items.append(item)
            probe.defects[f"{path.stem}: identical captions"] += captions[0] == captions[1]
            triples[item.images[0].name, *captions] += 1
        probe.defects[f"{path.stem}: numbers left out"] = _gaps(content)
    probe.defects["triples in two subsets"] = sum(count > 1 for count in triples.values())
    probe.rows = _rows([path.stem for path in paths])
    return probe


def _gaps(content):
    keys = {int(key) for key in content}
    return max(keys, default=-1) + 1 - len(keys)


def _rows(subsets):
    rows = [Row(subset, "accuracy", (subset,)) for subset in subsets]
    for family, members in (*FAMILIES.items(), ("all", SUBSETS)):
        there = tuple(subset for subset in members if subset in subsets)
        if len(there) > 1:
            rows.append(Row(f"{family} micro", "accuracy", there))
            rows.append(Row(f"{family} macro", "accuracy", there, (1 / len(there),) * len(there)))
    return rows


def recorded_answers(path):
    """(right, all) of recorded answers of a generative model, entries with `correct`; one file ends with a scalar.

    A model that answers by the order of its options is scored by the mean over both orders.
    """
    records = [entry for entry in read_json(path).values() if isinstance(entry, dict)]
    return sum(bool(entry.get("correct")) for entry in records), len(records)
