"""Images alone and texts alone, for what is encoded once: evaluation, caches of a frozen tower, mining."""

import numpy as np
import torch

from clip_vl.datasets.images import DamagedImage


class ImagesOf:
    """`images[(_, rows)]`: images uint8 (B, 3, S, S), rows (B,), damaged [(row, sentence)] whose images are black."""

    def __init__(self, source, crop):
        self.source, self.crop = source, crop

    def __getitem__(self, key):
        rows, views, damaged = [int(row) for row in key[1]], [], []
        for row in rows:
            try:
                views.append(self.crop(self.source.read(row), None, self.source.name(row)))
            except DamagedImage as error:
                damaged.append((row, str(error)))
                views.append(torch.zeros(3, self.crop.resolution, self.crop.resolution, dtype=torch.uint8))
        return {"images": torch.stack(views), "rows": torch.tensor(rows), "damaged": damaged}


class TextsOf:
    """`texts[(_, numbers)]`: tokens, a dict of (B, L), of texts by their number."""

    def __init__(self, source, tokenizer):
        self.source, self.tokenizer = source, tokenizer

    def __getitem__(self, key):
        return {"tokens": self.tokenizer([self.source.text(int(number)) for number in key[1]])}


def retrieval_items(source):
    """What retrieval asks of a source, each image once however many rows it has.

    returns: rows (N,) of the images; numbers (M,) of all their texts; image_of_text (M,), place in `rows`
    """
    place, rows, numbers, owners = {}, [], [], []
    for row in range(len(source)):
        image = place.setdefault(source.image_id(row), len(rows))
        if image == len(rows):
            rows.append(row)
        found = [source.text_number(row, index) for index in range(source.num_captions(row))]
        numbers += found
        owners += [image] * len(found)
    return np.array(rows), np.array(numbers), np.array(owners)


def shares(numbers, batch_size, rank, world_size):
    """This process's batches of `numbers`, dealt out in turn: every one in exactly one batch of one process."""
    batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    return batches[rank::world_size]
