"""SVO-Probes (arXiv:2106.09141): a sentence, an image of it, and one in which subject, verb or object is another."""

import ast
from pathlib import Path

from clip_vl.datasets.probes.items import Crop, Item, Probe, Row, expected_form, read_table
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError

SLOTS = {"subject": "subj_neg", "verb": "verb_neg", "object": "obj_neg"}
COLUMNS = ("sentence", "pos_triplet", "neg_triplet", "pos_image_id", "neg_image_id", *SLOTS.values())
FOLDERS = ("{}.jpg", "images/{}.jpg", "{}")
BOOLEANS = {"true": True, "false": False, "1": True, "0": False}


def read_svo(folder, columns=COLUMNS):
    """Probes (pairwise, thresholded) of svo_probes.csv.

    Pairwise: the sentence fits its own image better. Thresholded, the official one: for each sentence and image a
    decision; the mean of the accuracies of both sides. A sentence counts once for each way it is written: capitals and
    spaces make another one. Rows with other than one flag are left out and counted.
    """
    path = Path(folder) if Path(folder).is_file() else Path(folder) / "svo_probes.csv"
    pairwise = Probe("svo_pairwise", "images", "wrong", [], [], FOLDERS)
    decisions = Probe("svo_thresholded", "match", "wrong", [], [], FOLDERS)
    cases = {}
    for number, (location, row) in enumerate(read_table(path, columns, pairwise.files)):
        with expected_form(location):
            changed = [slot for slot, column in SLOTS.items() if BOOLEANS[row[column].strip().lower()]]
            images = [Crop(image_name(row[f"{side}_image_id"])) for side in ("pos", "neg")]
            _count_triplets(row, pairwise.defects)
        sentence = " ".join(row["sentence"].lower().split())
        pairwise.defects["rows without a sentence, excluded"] += not sentence
        pairwise.defects["rows with other than one slot changed, excluded"] += len(changed) != 1
        pairwise.defects['no sentence but a list of words, such as "woman, music, notes"'] += (
            row["sentence"].count(",") >= 2 and len(sentence.split()) <= 4
        )
        if len(changed) != 1 or not sentence:
            continue
        groups = changed[0], "all"
        pairwise.items.append(Item(str(number), groups, tuple(images), (row["sentence"],), fold=sentence))
        for gold, image in zip((1, 0), images):
            for group in groups:  # once each: a sentence has several rows
                cases.setdefault((group, row["sentence"], image, gold), sentence)
    for (group, text, image, gold), sentence in cases.items():
        side = ("negative", "positive")[gold]
        item = Item(f"{group}/{len(decisions.items)}", (f"{group} {side}",), (image,), (text,), gold, sentence)
        decisions.items.append(item)
    decisions.files, names = pairwise.files, [*SLOTS, "all"]
    pairwise.rows = [Row(name, "pairwise accuracy", (name,)) for name in names]
    decisions.rows = [
        Row(name, "thresholded accuracy", (f"{name} positive", f"{name} negative"), (0.5, 0.5)) for name in names
    ]
    return pairwise, decisions


def image_name(text):
    """An image id, which names a file: digits, also where a program wrote them as a float."""
    number = text.strip().removesuffix(".0")
    if not number.isascii() or not number.isdigit() or len(number) > 18:
        raise ValueError(f"the image id {text!r:.40} is no number")
    return number


def addresses(path):
    """{image id: URL} of both columns of svo_probes.csv; DataError where an id has two."""
    found = {}
    for location, row in read_table(path, ("pos_image_id", "neg_image_id", "pos_url", "neg_url"), None):
        for side in ("pos", "neg"):
            with expected_form(location):
                name = image_name(row[f"{side}_image_id"])
            if found.setdefault(name, row[f"{side}_url"].strip()) != row[f"{side}_url"].strip():
                raise DataError(f"{location}: image {name} has two addresses")
    return found


def triplets(text):
    """[[subject, verb, object], ...] of `girl,sit,grass` or "['girl,sit,grass', ...]"; an empty list is one too."""
    text = text.strip()
    if text.startswith("["):
        values = ast.literal_eval(text) if len(text) < 10_000 else None
        if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
            raise ValueError(f"{text!r:.60} is no list of triplets")
        return [value.split(",") for value in values]
    return [text.split(",")] if text else []


def _count_triplets(row, defects):
    for name in ("pos_triplet", "neg_triplet"):
        try:
            found = triplets(row[name])
        except (SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"{name} {row[name]!r:.60}: {error}") from None
        defects[f"{name} is empty"] += not found
        defects[f"{name} is a list"] += row[name].strip().startswith("[")


def fetch_svo(path, images):
    """Rank 0 downloads the images that are missing."""
    from clip_vl.datasets.images.download import fetch_all

    if dist.rank() == 0:
        table = path if path.is_file() else path / "svo_probes.csv"
        fetch_all(addresses(table), images, say=dist.print0)
    dist.barrier()
