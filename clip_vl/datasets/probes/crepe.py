"""CREPE (arXiv:2212.07796): a region of a Visual Genome image, its caption, and hard negatives made from it."""

import re
from collections import Counter

from clip_vl.datasets.probes.items import (
    Crop,
    Item,
    Probe,
    Row,
    box_of,
    expected_form,
    literal_strings,
    one_folder,
    read_table,
)
from clip_vl.engine.errors import DataError

FOLDERS = ("VG_100K/{}.jpg", "VG_100K_2/{}.jpg", "{}.jpg", "images/{}.jpg")
PRODUCTIVITY = re.compile(r"prod_vg_hard_negs_(atom|swap|negate)_complexity_(\d+)")
SYSTEMATICITY = re.compile(r"syst_vg_hard_negs_(seen|unseen)_compounds_in_(\w+)")
NEGATIVES = ("atom", "comp", "combined")
BOX = ("x", "y", "width", "height")


def read_productivity(folder):
    """prod_vg_hard_negs_<type>_complexity_<n>.csv: rows per file, and per type the mean over items and over files.

    Negations begin with a capital where captions do not, which a model may notice: they are scored in lower case too.
    """
    probe = Probe("crepe_productivity", "captions", "wrong", [], [], FOLDERS)
    paths = one_folder(folder, "**/prod_vg_hard_negs_*.csv", "CREPE productivity")
    for path in sorted(paths, key=lambda path: (_matched(path, PRODUCTIVITY)[0], int(_matched(path, PRODUCTIVITY)[1]))):
        kind, complexity = _matched(path, PRODUCTIVITY)
        subset = f"{kind}/{complexity}"
        for number, (location, row) in enumerate(
            read_table(path, ("image_id", "caption", "hard_negs", *BOX), probe.files)
        ):
            negatives = literal_strings(row["hard_negs"], location)
            probe.defects[f"{kind}: negatives in a set, taken in the order of the text"] += _is_set(row["hard_negs"])
            _check(probe, f"{kind}: other than five negatives", len(negatives) != 5)
            item = _item(f"{subset}/{number}", (subset,), row, negatives, location, probe, kind)
            if item and kind == "negate":
                _check(probe, "negate: some negative begins with another case than the caption",
                       any(n[:1].isupper() != item.captions[0][:1].isupper() for n in item.captions[1:]))  # fmt: skip
                lower = tuple(caption.lower() for caption in item.captions)
                same = lower[0] in lower[1:]
                _check(probe, "negate: in lower case a negative is the caption itself, excluded there", same)
                if not same:
                    item = item._replace(id=f"{item.id}/lower", groups=(f"lower/{subset}",), captions=lower)
                    probe.items.append(item)
    probe.rows = _productivity_rows(dict.fromkeys(item.groups[0] for item in probe.items))
    return probe


def _productivity_rows(subsets):
    rows = []
    for kind in ("atom", "swap", "negate", "lower/negate"):
        files = tuple(subset for subset in subsets if subset.rpartition("/")[0] == kind)
        rows += [Row(subset, "R@1", (subset,)) for subset in files]
        if files:
            even = (1 / len(files),) * len(files)
            rows += [Row(f"{kind} micro", "R@1", files), Row(f"{kind} macro", "R@1", files, even)]
            rows += [Row(f"{kind} micro", metric, files) for metric in ("R@3", "R@5", "R@10", "mean rank")]
    return rows


def read_systematicity(folder):
    """syst_vg_hard_negs_<seen|unseen>_compounds_in_<corpus>.csv; for models trained on that corpus."""
    probe = Probe("crepe_systematicity", "captions", "wrong", [], [], FOLDERS)
    columns = ("image_id", "caption", *BOX, *(f"valid_hard_negs_{kind}" for kind in NEGATIVES))
    for path in one_folder(folder, "**/syst_vg_hard_negs_*.csv", "CREPE systematicity"):
        split, corpus = _matched(path, SYSTEMATICITY)
        for number, (location, row) in enumerate(read_table(path, columns, probe.files)):
            for kind in NEGATIVES:
                subset = f"{corpus}/{kind}/{split}"
                negatives = literal_strings(row[f"valid_hard_negs_{kind}"], location)
                if not negatives:
                    probe.defects[f"{subset}: no negatives, excluded"] += 1
                    continue
                _item(f"{subset}/{number}", (subset,), row, negatives, location, probe, subset)
    metrics = ("R@1", "R@3", "R@5", "R@10", "mean rank")
    subsets = sorted(Counter(item.groups[0] for item in probe.items))
    probe.rows = [Row(subset, metric, (subset,)) for subset in subsets for metric in metrics]
    return probe


def _item(name, groups, row, negatives, location, probe, kind):
    """Add the item of a row to the probe, unless its caption is among its own negatives; that is counted."""
    with expected_form(location):
        box = box_of(row["x"], row["y"], row["width"], row["height"])
        image_id = str(int(row["image_id"]))
    if row["caption"] in negatives:
        probe.defects[f"{kind}: the positive is among the negatives, excluded"] += 1
        return None
    item = Item(name, groups, (Crop(image_id, box),), (row["caption"], *negatives))
    probe.items.append(item)
    return item


def _check(probe, defect, found):
    probe.defects[defect] += bool(found)


def _is_set(text):
    return text.lstrip().startswith("{")


def _matched(path, pattern):
    found = pattern.fullmatch(path.stem)
    if not found:
        raise DataError(f"{path} is not named as CREPE's files are, such as prod_vg_hard_negs_atom_complexity_4.csv")
    return found.groups()
