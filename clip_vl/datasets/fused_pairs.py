"""Pairs of an image and a text as the fused encoder takes them: pictures on canvases, texts of like length together."""

import numpy as np

from clip_vl.datasets.images import canvas_size, decode_image, place_on_canvas, resize, resized_size
from clip_vl.datasets.text import pad_tokens


def picture_on_canvas(data, name, smallest, largest):
    """Bytes of an image file -> images uint8 (1, 3, H, W), image_boxes (1, 4). Raises DamagedImage."""
    picture = decode_image(data, name)
    size = tuple(picture.shape[1:])
    resized = resize(picture, resized_size(*size, smallest, largest))
    return place_on_canvas([resized], canvas_size(*size, smallest, largest))


def text_batches(texts, places, batch_size):
    """Yields (positions in `places`, token batch) of texts[place], a list of ids each; the longest first."""
    order = np.argsort([-len(texts[place]) for place in places], kind="stable")
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield part, pad_tokens([texts[places[position]] for position in part])


class PairList:
    """Pairs of N images and M texts, numbered by image and then by text: all of them, or those of `keys`.

    keys: sorted int64 image * M + text of some pairs
    """

    def __init__(self, M, N, keys=None):
        self.M, self.keys = M, keys
        self.count = N * M if keys is None else len(keys)

    def __getitem__(self, numbers):
        """(image, text) places of pairs by their numbers."""
        return np.divmod(numbers if self.keys is None else self.keys[numbers], self.M)
