"""What a model has to encode for some probes: each distinct part of an image and each caption once."""

import hashlib
import itertools
from pathlib import Path

import numpy as np

from clip_vl.datasets.probes.items import Crop, find_images
from clip_vl.engine.errors import DataError


class Plan:
    """What there is to score: distinct crops and captions, and for each probe which items can be scored.

    crops: [Crop], whose names are paths or a `RowImage`;  texts: [str]
    parts: [(Probe, [(item, crop numbers, text numbers)], [items without an image])]
    """

    def __init__(self, probes, sees):
        crops, texts, self.parts, self.digest = {}, {}, [], hashlib.sha256()
        for probe, images in probes:
            paths = find_images(probe, images) if sees else None
            items, missing = [], []
            for item in probe.items:
                if paths is not None and not all(crop.name in paths for crop in item.images):
                    missing.append(item)
                    continue
                crops_of_item = [Crop(path_or_row(paths[c.name]), c.box) if sees else c for c in item.images]
                items.append((item, [crops.setdefault(c, len(crops)) for c in crops_of_item],
                              [texts.setdefault(t, len(texts)) for t in item.captions]))  # fmt: skip
            if not items:
                raise DataError(f"{probe.name}: none of the images of its {len(probe.items):,} items is in {images}; "
                                "--images_dir names their folder")  # fmt: skip
            self.parts.append((probe, items, missing))
            self.digest.update(repr([probe.name, probe.rows, probe.items, [item.id for item in missing]]).encode())
        self.crops, self.texts = list(crops), list(texts)

    def pairs(self):
        """Every (crop, text) that some item compares, (P, 2)."""
        wanted = {pair for _, items, _ in self.parts for _, i, t in items for pair in itertools.product(i, t)}
        return np.array(sorted(wanted))


def path_or_row(found):
    return str(found) if isinstance(found, Path) else found
