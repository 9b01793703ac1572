"""Winoground (arXiv:2204.03162): two images, two captions of the same words. The licence forbids passing it on, so
the user's own copy is read where it lies: examples.jsonl and images/, or the hub's form with the images in its rows.
"""

from collections import Counter
from pathlib import Path

from clip_vl.datasets.hub.rows import HubRows, RowImage, files_of
from clip_vl.datasets.probes.items import Crop, Item, Probe, Row, expected_form, read_bytes, text_of
from clip_vl.datasets.storage.json_stream import iterate_json_lines
from clip_vl.engine.errors import DataError, UserError

METRICS = ("text", "image", "group")
IMAGES, CAPTIONS = ("image_0", "image_1"), ("caption_0", "caption_1")
TAGS = ("collapsed_tag", "secondary_tag", "num_main_preds")


def read_winoground(folder):
    """The Probe of <folder>/examples.jsonl or of a Hugging Face data set in the folder, with breakdowns by its tags."""
    probe = Probe("winoground", "winoground", "wrong", [], [], ("images/{}.png", "{}.png", "{}"))
    seen = set()
    for location, entry in _entries(Path(folder), probe):
        with expected_form(location):
            probe.items.append(_item(entry))
        if probe.items[-1].id in seen:
            raise DataError(f"{location}: the id {probe.items[-1].id} occurs twice")
        seen.add(probe.items[-1].id)
    counts = Counter(group for item in probe.items for group in item.groups)
    probe.rows = [Row(group, metric, (group,)) for group in sorted(counts, key=_order) for metric in METRICS]
    probe.defects["empty secondary_tag"] = sum(
        not any(g.startswith("secondary") for g in i.groups) for i in probe.items
    )
    return probe


def _entries(folder, probe):
    """Yield (location, entry) with the names of its images; images that lie in the rows are added to the probe."""
    path = folder if folder.is_file() else folder / "examples.jsonl"
    if path.is_file():
        read_bytes(path, probe.files)
        with path.open("rb") as lines:
            yield from ((f"{path}:{number}", entry) for number, entry in iterate_json_lines(lines, path))
    elif files_of(folder):
        rows = HubRows(folder)
        probe.files |= rows.digests()
        for number, entry in enumerate(rows.read(["id", *CAPTIONS, *TAGS])):
            names = {column: f"{entry['id']}_{column}" for column in IMAGES}
            probe.inside |= {name: RowImage(str(folder), number, column) for column, name in names.items()}
            yield f"{folder}[{number}]", entry | names
    else:
        raise UserError(f"{path} is not there: get Winoground from its authors, whose licence forbids passing it on")


def _item(entry):
    tags = [f"{tag} {value}" for tag in TAGS if (value := str(entry.get(tag) or ""))]
    images = tuple(Crop(text_of(entry, column)) for column in IMAGES)
    captions = tuple(text_of(entry, column) for column in CAPTIONS)
    return Item(str(int(entry["id"])), ("all", *tags), images, captions)


def _order(group):
    return group != "all", group


def scores_by_file(lines, location="scores"):
    """{item id: [[s00, s01], [s10, s11]], image by caption} of score files, lines {"label": "7_c0_i1", "score": x}."""
    blocks = {}
    for number, entry in iterate_json_lines(lines, location):
        with expected_form(f"{location}:{number}"):
            item, caption, image = entry["label"].split("_")
            block = blocks.setdefault(item, [[None, None], [None, None]])
            block[int(image.removeprefix("i"))][int(caption.removeprefix("c"))] = float(entry["score"])
    for item, block in blocks.items():
        if any(value is None for row in block for value in row):
            raise DataError(f"{location}: item {item} has not all of its four scores")
    return blocks
