"""NLVR-style statements, true or false of one image or of two: the rows that `nlvr2.py` reads (data/README.md)."""

from collections import Counter
from pathlib import Path

from clip_vl.datasets.probes.items import Crop, Item, Probe, Row, expected_form, one_folder, read_bytes, text_of
from clip_vl.datasets.storage.json_stream import read_json
from clip_vl.engine.errors import DataError

FOLDERS = ("{}.png", "nlvr_raw_images/{}.png", "nlvr2_raw_images/dev/{}.png", "nlvr2_raw_images/test1/{}.png", "{}")


def read_nlvr(folder):
    """*.json with rows {"identifier" or "uid", "img0"[, "img1"], "sent", "label"}; a threshold makes the decision.

    Rows without a label are of a hidden test set: they are counted and left out. One sentence stays in one fold.
    """
    probe = Probe("nlvr", "match", "wrong", [], [], FOLDERS)
    for path in one_folder(folder, "*.json", "statements as `python -m clip_vl.prepare convert` writes them"):
        read_bytes(path, probe.files)
        content = read_json(path)
        if not isinstance(content, list):
            raise DataError(f"{path} should hold a list, not a {type(content).__name__}")
        for number, entry in enumerate(content):
            with expected_form(f"{path}: entry {number}"):
                if "label" not in entry:
                    probe.defects[f"{path.stem}: no label, excluded"] += 1
                    continue
                if entry["label"] not in (0, 1):
                    raise ValueError(f"the label {entry['label']!r:.40} is neither 0 nor 1")
                images = tuple(Crop(text_of(entry, key)) for key in ("img0", "img1") if key in entry)
                sentence, name = text_of(entry, "sent"), entry.get("uid", entry.get("identifier", number))
                item = Item(f"{path.stem}/{name}", (path.stem,), images, (sentence,), int(entry["label"]), sentence)
                probe.items.append(item)
    for split in dict.fromkeys(item.groups[0] for item in probe.items):
        labels = Counter(item.gold for item in probe.items if item.groups[0] == split)
        probe.facts[f"{split} majority"] = 100 * max(labels.values()) / sum(labels.values())
        probe.rows += [Row(split, metric, (split,)) for metric in ("accuracy", "precision", "recall", "F1")]
    return probe


def archives_below(folder):
    """The archives of NLVR v1, which must be converted first."""
    return sorted(Path(folder).glob("nlvr_*.zip"))
