"""ARO's Visual Genome probes (arXiv:2210.01936): who does what to whom, and which attribute is whose."""

from collections import Counter
from pathlib import Path

from clip_vl.datasets.probes.items import Crop, Item, Probe, Row, box_of, expected_form, one_folder, read_bytes, text_of
from clip_vl.datasets.storage.json_stream import read_json
from clip_vl.engine.errors import DataError, UserError

FOLDERS = ("{}", "images/{}", "VG_100K/{}", "VG_100K_2/{}")
EXCLUDED = "vg_relation_excluded_relations.json"
LEAST_PAIRS = 25  # items of a pair of attributes, fewer are left out of the published mean


def read_relation(folder):
    """visual_genome_relation*.json: the mean over relation names without the near-symmetric and rare ones of
    vg_relation_excluded_relations.json; over all items; and over the items of the remaining names.
    """
    probe = _read(folder, "vg_relation", "visual_genome_relation*.json", lambda entry: text_of(entry, "relation_name"))
    path = (Path(folder).parent if Path(folder).is_file() else Path(folder)) / EXCLUDED
    if not path.is_file():
        raise UserError(f"{path} is not there: the 157 relations that the published mean leaves out")
    read_bytes(path, probe.files)
    excluded = read_json(path)
    if not isinstance(excluded, list) or not all(isinstance(name, str) for name in excluded):
        raise DataError(f"{path} should hold a list of relation names")
    names = sorted({item.groups[0] for item in probe.items})
    kept = tuple(name for name in names if name not in set(excluded))
    probe.defects["items of excluded relations, in the micro average alone"] = sum(
        item.groups[0] not in kept for item in probe.items
    )
    probe.facts["relations"] = {"all": len(names), "kept": len(kept)}
    probe.rows = _rows(tuple(names), kept)
    return probe


def read_attribution(folder):
    """visual_genome_attribution*.json: the mean over pairs of attributes with at least 25 items, and over all items."""
    probe = _read(folder, "vg_attribution", "visual_genome_attribution*.json", _pair_of_attributes)
    counts = Counter(item.groups[0] for item in probe.items)
    kept = tuple(sorted(name for name, count in counts.items() if count >= LEAST_PAIRS))
    probe.defects[f"items of pairs with fewer than {LEAST_PAIRS}, in the micro average alone"] = sum(
        count for count in counts.values() if count < LEAST_PAIRS
    )
    probe.facts["pairs"] = {"all": len(counts), "kept": len(kept)}
    probe.rows = _rows(tuple(sorted(counts)), kept)
    return probe


def _pair_of_attributes(entry):
    attributes = entry["attributes"]
    if not isinstance(attributes, list):
        raise ValueError(f"attributes {attributes!r:.60} is no list of two")
    first, second = attributes
    return f"{first}_{second}"


def _read(folder, name, pattern, group_of):
    probe = Probe(name, "captions", "wrong", [], [], FOLDERS)
    for path in one_folder(folder, pattern, "ARO"):
        read_bytes(path, probe.files)
        content = read_json(path)
        if not isinstance(content, list):
            raise DataError(f"{path} should hold a list, not a {type(content).__name__}")
        for number, entry in enumerate(content):
            with expected_form(f"{path}: entry {number}"):
                crop = Crop(text_of(entry, "image_path"), box_of(*(entry[f"bbox_{side}"] for side in "xywh")))
                captions = text_of(entry, "true_caption"), text_of(entry, "false_caption")
                probe.items.append(Item(f"{path.stem}/{number}", (group_of(entry),), (crop,), captions))
            probe.defects["identical captions"] += captions[0] == captions[1]
    return probe


def _rows(names, kept):
    if not kept:
        return [Row("micro", "accuracy", names)]
    even = (1 / len(kept),) * len(kept)
    averages = Row("macro", "accuracy", kept, even), Row("kept micro", "accuracy", kept)
    return [*averages, Row("micro", "accuracy", names)]
