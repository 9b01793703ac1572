"""NegCLIP's batches: anchors, one neighbour image of each, and a negative caption of both (arXiv:2210.01936, section 4)."""

import numpy as np
import torch

from clip_vl.datasets.images import DamagedImage
from clip_vl.engine.errors import DataError
from clip_vl.engine.random import numpy_rng

MAX_REPLACEMENTS = 100  # anchors drawn for one whose images cannot be read


class NegativePairs:
    """`pairs[(epoch, rows)]` is a batch of B anchors; every draw is keyed by (seed, epoch, row).

    table: `NegativeTable`;  crop: bytes, generator, name -> uint8 (3, S, S);  tokenizer: texts -> dict of (4B, L)

    images:    uint8 (2B, 3, S, S): the anchors, then a neighbour of each
    tokens:    of 4B texts: the captions of those 2B images, then a negative caption of each
    image_ids: int64 (2B,), the row of each image
    rows:      int64 (B,) of the anchors;  damaged: list of (name, sentence)
    """

    def __init__(self, table, crop, tokenizer, seed):
        self.table, self.crop, self.tokenizer, self.seed = table, crop, tokenizer, seed

    def __getitem__(self, key):
        epoch, rows = key
        damaged = []
        anchors = [self._anchor(int(epoch), int(row), damaged) for row in rows]
        chosen = [row for row, _ in anchors] + [neighbour for _, (neighbour, *_) in anchors]
        pictures = [views[0] for _, (_, views, _) in anchors] + [views[1] for _, (_, views, _) in anchors]
        negatives = [texts[0] for _, (_, _, texts) in anchors] + [texts[1] for _, (_, _, texts) in anchors]
        texts = [self.table.caption(row) for row in chosen] + negatives
        rng = numpy_rng(self.seed, "texts", epoch, rows[0])
        return {
            "images": torch.stack(pictures),
            "tokens": self.tokenizer(texts, rng),
            "image_ids": torch.tensor(chosen),
            "rows": torch.tensor(chosen[: len(rows)]),
            "damaged": damaged,
        }

    def _anchor(self, epoch, row, damaged):
        """(row, (neighbour, two views, two negative captions)) of an anchor, or of one drawn in its place."""
        others = numpy_rng(self.seed, "replacement", epoch, row).integers(len(self.table), size=MAX_REPLACEMENTS)
        for candidate in (row, *others.tolist()):
            rng = numpy_rng(self.seed, "negatives", epoch, candidate)
            neighbour = int(rng.choice(self.table.neighbours(candidate)))
            negatives = [str(rng.choice(self.table.negatives(place))) for place in (candidate, neighbour)]
            try:
                views = [self._view(place, rng) for place in (candidate, neighbour)]
            except DamagedImage as error:
                damaged.append((self.table.name(candidate), str(error)))
                continue
            return candidate, (neighbour, views, negatives)
        raise DataError(f"{MAX_REPLACEMENTS} anchors in a row cannot be read; the last: {damaged[-1][1]}")

    def _view(self, row, rng):
        return self.crop(self.table.read(row), rng, self.table.name(row))


def usable_rows(table):
    """Rows that can be anchors: with a negative caption, and neighbours of which each has one, int64."""
    speaks = np.array([bool(table.negatives(row)) for row in range(len(table))])
    return np.array([row for row in np.flatnonzero(speaks) if len(table.neighbours(row)) and speaks[table.neighbours(row)].all()])
