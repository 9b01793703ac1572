"""NegCLIP's batches: anchors, a neighbour image of each, and a false caption of all (arXiv:2210.01936, section 4)."""

from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.captions.source import path_below
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.negatives.table import NegativeLMDB, read_tsv, recorded_images_dir
from clip_vl.engine.errors import DataError
from clip_vl.engine.random import numpy_rng

MAX_REPLACEMENTS = 100  # anchors drawn for one whose images cannot be read


def open_negatives(path, images_dir=None):
    """The `NegativeTable` of a .tsv, or of a .lmdb, whose rows are in the order of their ids.

    images_dir: folder of the images, below which all must lie [as `mine_negatives` recorded, else the table's own]
    """
    path = Path(path)
    if path.suffix == ".lmdb":
        store = NegativeLMDB(path)
        number = {key: index for index, key in enumerate(store.keys())}
        rows = [store.load(key) for key in number]
        try:
            rows = [row._replace(neg_image=tuple(number[key] for key in row.neg_image)) for row in rows]
        except KeyError:
            raise DataError(f"{path}: a row names a neighbour that is not there; mine it again") from None
    else:
        rows = read_tsv(path)
    root = Path(images_dir or recorded_images_dir(path))
    for index, row in enumerate(rows):
        try:
            path_below(root, row.filepath)
        except ValueError as error:
            raise DataError(f"{path}: row {index}: {error}") from None
    return NegativeTable(rows, root)


class NegativeTable:
    """Rows of captions, images, negative captions and neighbours. Picklable, for the loader's workers."""

    def __init__(self, rows, root):
        self.rows, self.root = rows, root

    def __len__(self):
        return len(self.rows)

    def name(self, row):
        return str(self.root / path_below(self.root, self.rows[row].filepath))

    def read(self, row):
        """The bytes of the image file. Raises DamagedImage."""
        try:
            return Path(self.name(row)).read_bytes()
        except OSError as error:
            raise DamagedImage(self.name(row), f"cannot be read: {error.strerror}") from None

    def caption(self, row):
        return self.rows[row].title

    def negatives(self, row):
        return self.rows[row].neg_caption

    def neighbours(self, row):
        return self.rows[row].neg_image


class NegativePairs:
    """`pairs[(epoch, rows)]` is a batch of B anchors; every draw is keyed by (seed, epoch, row).

    table:  `NegativeTable`;  crop: bytes, generator, name -> uint8 (3, S, S);  tokenizer: texts -> dict of (4B, L)
    texts:  without, no negative captions: tokens of 2B texts
    images: without, no neighbours: B images, and texts of these alone

    images:    uint8 (2B, 3, S, S): the anchors, then a neighbour of each
    tokens:    of 4B texts: the captions of those 2B images, then a negative caption of each
    image_ids: int64 (2B,), the row of each image
    rows:      int64 (B,) of the anchors;  damaged: list of (name, sentence)
    """

    def __init__(self, table, crop, tokenizer, seed, *, texts=True, images=True):
        self.table, self.crop, self.tokenizer, self.seed = table, crop, tokenizer, seed
        self.negative_texts, self.neighbours, self.anchors = texts, images, usable_rows(table)

    def __getitem__(self, key):
        epoch, rows = key
        damaged = []
        anchors = [self._anchor(int(epoch), int(row), damaged) for row in rows]
        groups = zip(*anchors)  # all anchors, then all neighbours
        members = [member for group in groups for member in group]
        chosen = [member[0] for member in members]
        texts = [self.table.caption(row) for row in chosen]
        if self.negative_texts:
            texts += [negative for _, _, negative in members]
        rng = numpy_rng(self.seed, "texts", epoch, rows[0])
        return {
            "images": torch.stack([view for _, view, _ in members]),
            "tokens": self.tokenizer(texts, rng),
            "image_ids": torch.tensor(chosen),
            "rows": torch.tensor(chosen[: len(rows)]),
            "damaged": damaged,
        }

    def _anchor(self, epoch, row, damaged):
        """[(row, view, negative caption)] of an anchor and of its neighbour, or of an anchor drawn to replace it."""
        others = numpy_rng(self.seed, "replacement", epoch, row).integers(len(self.anchors), size=MAX_REPLACEMENTS)
        for candidate in (row, *self.anchors[others].tolist()):
            rng = numpy_rng(self.seed, "negatives", epoch, candidate)
            try:
                chosen = [candidate, *([_one_of(self.table.neighbours(candidate), rng)] if self.neighbours else [])]
                negatives = [_one_of(self.table.negatives(member), rng) for member in chosen]
                return [(member, self._view(member, rng), text) for member, text in zip(chosen, negatives)]
            except DamagedImage as error:
                damaged.append((self.table.name(candidate), str(error)))
        raise DataError(f"{MAX_REPLACEMENTS} anchors in a row cannot be read; the last: {damaged[-1][1]}")

    def _view(self, row, rng):
        return self.crop(self.table.read(row), rng, self.table.name(row))


def _one_of(values, rng):
    return values[int(rng.integers(len(values)))]


def usable_rows(table):
    """Rows that can be anchors: with a negative caption, and neighbours that all have one, int64."""
    speaks = np.array([bool(table.negatives(row)) for row in range(len(table))])
    rows = [row for row in np.flatnonzero(speaks) if len(near := table.neighbours(row)) and speaks[list(near)].all()]
    return np.array(rows, dtype=np.int64)
