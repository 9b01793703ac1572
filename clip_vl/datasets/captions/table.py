"""Captioned images in files of a folder: a table of paths, captions and classes, built once and memory-mapped."""

import json
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_vl.datasets.captions.source import CaptionSource
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.storage.cache import build_once
from clip_vl.datasets.storage.columns import ColumnWriter, TextColumn, TextWriter, read_column
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.datasets.storage.left_out import report_left_out
from clip_vl.engine.errors import DataError

FORMAT = 3  # counts up when the tables change their form or meaning, so that older ones are built again
BATCH = 8192  # records written at a time
MAX_LEFT_OUT = 0.5
BLANK, NO_CAPTION = "the caption is blank", "the image has no caption"  # reasons of `LeftOut`


class Record(NamedTuple):
    path: str  # relative to the folder of the images
    captions: list
    label: int = -1


class LeftOut(NamedTuple):
    """A caption, or an image without one, that does not become a part of the table."""

    place: str  # "file:line"
    reason: str
    count: int = 1


def build_table(cache_root, what, settings, records, max_left_out=MAX_LEFT_OUT):
    """The cache folder of the table of `records()`, an iterator of `Record` and `LeftOut`, and the digest it has.

    what:         what messages call the input
    settings:     all that the records depend on, as JSON
    max_left_out: the share of captions that may be left out; what is left out is said each time the table is opened
    """
    digest = digest_of({"format": FORMAT, "table": settings})

    def build(folder):
        writer, left = TableWriter(folder), {}
        iterator = _counted(records(), left)
        while batch := list(islice(iterator, BATCH)):
            writer.extend(batch)
        if not writer.rows:
            reasons = "".join(f"; {reason}: {count:,}, first {place}" for reason, (count, place) in left.items())
            raise DataError(f"{what} holds no captioned image{reasons}")
        writer.close(left_out=left, texts=writer.texts)

    folder = build_once(cache_root, "captions", digest, build)
    meta = json.loads((folder / "meta.json").read_bytes())
    report_left_out(what, meta["left_out"], meta["texts"] or meta["rows"], max_left_out)
    return folder, digest


def _counted(records, left):
    """The records alone; `left` becomes {reason: [how many were left out, where the first is]}."""
    for record in records:
        if isinstance(record, LeftOut):
            left.setdefault(record.reason, [0, record.place])[0] += record.count
        else:
            yield record


class TableWriter:
    """Columns path, captions, caption_starts (N + 1,), label (N,), and meta.json with the number of classes.

    extra: {name: (writer class, dtype)} of further columns, given to `extend` by name
    """

    def __init__(self, folder, extra={}):  # noqa: B006 (never changed)
        self.folder, self.rows, self.texts, self.num_classes = Path(folder), 0, 0, 0
        columns = {
            "path": (TextWriter, np.uint8),
            "captions": (TextWriter, np.uint8),
            "caption_starts": (ColumnWriter, np.int64),
            "label": (ColumnWriter, np.int32),
            **extra,
        }
        self.writers = {name: kind(folder, name, dtype) for name, (kind, dtype) in columns.items()}
        self.writers["caption_starts"].extend([0])

    def extend(self, records, **extra):
        ends = self.texts + np.cumsum([len(record.captions) for record in records], dtype=np.int64)
        self.texts, self.rows = int(ends[-1]), self.rows + len(records)
        labels = [record.label for record in records]
        self.num_classes = max(self.num_classes, max(labels) + 1)
        columns = {"path": [record.path for record in records], "label": labels, "caption_starts": ends}
        columns["captions"] = list(chain.from_iterable(record.captions for record in records))
        for name, values in (columns | extra).items():
            self.writers[name].extend(values)

    def close(self, **meta):
        for writer in self.writers.values():
            writer.close()
        meta = {"num_classes": self.num_classes, "rows": self.rows, **meta}
        (self.folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


class CaptionTable(CaptionSource):
    """The rows of a table. Pickles as its paths: a loader worker opens its own maps.

    images: the folder of the images
    strip:  whether the first part of each path is left out, where the images lie one folder higher than the file says
    """

    def __init__(self, folder, digest, images, strip=False):
        self.folder, self.digest, self.images, self.strip = Path(folder), digest, Path(images), strip
        self.meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        self.num_classes = self.meta["num_classes"]
        self.paths, self.texts = TextColumn(folder, "path"), TextColumn(folder, "captions")
        self.starts, self.labels = read_column(folder, "caption_starts"), read_column(folder, "label")

    def __reduce__(self):
        return type(self), (self.folder, self.digest, self.images, self.strip)

    def __len__(self):
        return len(self.labels)

    def name(self, row):
        path = self.paths[row]
        return str(self.images / (path.partition("/")[2] if self.strip else path))

    def read(self, row):
        name = self.name(row)
        try:
            return Path(name).read_bytes()
        except OSError as error:
            raise DamagedImage(name, f"cannot be read: {error.strerror}") from None

    def label(self, row):
        return int(self.labels[row])

    def num_captions(self, row):
        return int(self.starts[row + 1] - self.starts[row])

    def text_number(self, row, index):
        return int(self.starts[row]) + index

    def texts_of_first(self, rows):
        return int(self.starts[rows])

    def text(self, number):
        return self.texts[number]
