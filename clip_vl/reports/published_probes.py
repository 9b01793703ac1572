"""Published scores of probes to compare with: those of the papers here, re-measurements from a table on disk.

Marks: P published by a probe's or model's authors; F recomputed from their score files; T measured by others.
"""

import csv
from pathlib import Path

TABLE = "reference_scores_third_party.csv"
SHOWN = (("ViT-B-32", "openai", "ViT-B/32 T"), ("RN50", "openai", "RN50 T"), ("ViT-L-14", "openai", "ViT-L/14 T"),
         ("NegCLIP", "coco-ft", "NegCLIP T"))  # fmt: skip

MODELS = ("RN50", "ViT-B/32", "ViT-L/14", "NegCLIP")
SUGARCREPE = {  # of those; arXiv:2306.14610, table 3; NegCLIP ran there with another GELU
    "replace_obj": (91.77, 90.92, 94.07, 92.68),
    "replace_att": (80.58, 80.08, 79.19, 85.91),
    "replace_rel": (69.99, 69.20, 65.15, 76.46),
    "swap_obj": (61.79, 61.38, 60.16, 75.20),
    "swap_att": (68.47, 63.96, 62.31, 75.38),
    "add_obj": (74.54, 77.21, 78.32, 88.80),
    "add_att": (69.65, 68.79, 71.53, 82.80),
    "replace micro": (None, 80.76, None, 85.36),
    "swap micro": (None, 63.27, None, 75.33),
    "add micro": (None, 75.09, None, 87.29),
}
PUBLISHED = {
    ("winoground", "all", "text"): {"human F": 89.50, "ViT-B/32 F": 30.75},
    ("winoground", "all", "image"): {"human F": 88.50, "ViT-B/32 F": 10.50},
    ("winoground", "all", "group"): {"human F": 85.50, "ViT-B/32 F": 8.00},
    ("vg_relation", "macro", "accuracy"): {"ViT-B/32 P": 59.0, "NegCLIP P": 81.0},
    ("vg_attribution", "macro", "accuracy"): {"ViT-B/32 P": 62.0, "NegCLIP P": 71.0},
    ("flickr30k_order", "mean over seeds", "precision@1"): {"NegCLIP P": 91.0},
    ("vlchecklist_itc", "Object (6 of 6 cells)", "accuracy"): {"ViT-B/32 T": 81.6, "RN50 T": 81.5, "NegCLIP T": 85.1},
    ("vlchecklist_itc", "Attribute (5 of 5 cells)", "accuracy"): {"ViT-B/32 T": 67.7, "RN50 T": 67.2,
                                                              "NegCLIP T": 71.0},
    ("vlchecklist_itc", "Relation (2 of 2 cells)", "accuracy"): {"ViT-B/32 T": 63.0, "RN50 T": 60.1, "NegCLIP T": 68.8},
} | {
    ("sugarcrepe", row, "accuracy"): {f"{model} P": value for model, value in zip(MODELS, values) if value}
    for row, values in SUGARCREPE.items()
}  # fmt: skip


def keys_of(column):
    """[(probe, row, metric)] of ours that a column of the table is about, such as crepe::atom."""
    family, _, name = column.partition("::")
    if family == "aro" and name.startswith("VG_"):
        return [(name.lower(), "macro", "accuracy")]
    if family == "aro":
        return [(name.lower(), "mean over seeds", "precision@1")]
    if family == "crepe":  # its mean over complexities is not said
        return [("crepe_productivity", f"{name} {mean}", "R@1") for mean in ("micro", "macro")]
    if family == "sugarcrepe":
        return [("sugarcrepe", name, "accuracy")]
    if family == "svo_probes":
        slots = {"subj_neg": "subject", "verb_neg": "verb", "obj_neg": "object"}
        return [("svo_pairwise", slots[name], "pairwise accuracy")]
    if family == "vl_checklist":
        return [("vlchecklist_itc", name.replace("_", "/"), "accuracy")]
    return [("winoground", "all", name)] if family == "winoground" else []


def references(folder=None):
    """{(probe, row, metric): {whose: score}}; folder: where the table of re-measurements may lie."""
    found = {key: dict(scores) for key, scores in PUBLISHED.items()}
    path = Path(folder, TABLE) if folder else None
    if path is None or not path.is_file():
        return found
    with path.open(encoding="utf-8", newline="") as file:
        rows = {(row["arch"], row["pretrained"]): row for row in csv.DictReader(file)}
    for arch, pretrained, label in SHOWN:
        for column, value in rows.get((arch, pretrained), {}).items():
            for key in keys_of(column):
                found.setdefault(key, {})[label] = float(value)
    return found


def with_references(table, published):
    """The rows of a probe table with `references`, the published scores of each. published: as of `references`"""
    return [row | {"references": published.get((row["probe"], row["row"], row["metric"]), {})} for row in table]
