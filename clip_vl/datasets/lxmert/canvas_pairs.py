"""Pairs of an image and a text as the fused encoder takes them: pictures on canvases, texts of like length together."""

import numpy as np
import torch

from clip_vl.datasets.images.canvas import canvas_size, place_on_canvas, resized_size
from clip_vl.datasets.images.decoding import DamagedImage, decode_image, resize
from clip_vl.datasets.loader import to_device
from clip_vl.datasets.lxmert.wordpiece import pad_tokens


def picture_on_canvas(data, name, smallest, largest):
    """Bytes of an image file -> images uint8 (1, 3, H, W), image_boxes (1, 4). Raises DamagedImage."""
    return on_canvas(decode_image(data, name), smallest, largest)


def on_canvas(picture, smallest, largest):
    """A picture uint8 (3, h, w) of any size -> images uint8 (1, 3, H, W), image_boxes (1, 4)."""
    size = tuple(picture.shape[1:])
    resized = resize(picture, resized_size(*size, smallest, largest))
    return place_on_canvas([resized], canvas_size(*size, smallest, largest))


def text_batches(texts, batch_size):
    """Yields (positions, token batch) of texts, a list of ids each; the longest first."""
    order = np.argsort([-len(text) for text in texts], kind="stable")
    for start in range(0, len(order), batch_size):
        part = order[start : start + batch_size]
        yield part, pad_tokens([texts[position] for position in part])


def score_texts(scorer, picture, texts, batch_size, device):
    """(T,) float32 scores of one image with T texts; the image is seen once.

    scorer:  `see(images)` gives grids, `scorer(grids, boxes, input_ids, attention_mask, image_of_text)` scores
    picture: images (1, 3, H, W), image_boxes (1, 4);  texts: T lists of ids
    """
    images, boxes = (part.to(device) for part in picture)
    grids, scores = scorer.see(images), np.empty(len(texts), np.float32)
    for part, batch in text_batches(texts, batch_size):
        rows = torch.zeros(len(part), dtype=torch.long, device=device)
        scores[part] = scorer(grids, boxes, **to_device(batch, device), image_of_text=rows).cpu().numpy()
    return scores


def by_image(images):
    """Yields (image, positions of its pairs) from the image of each pair, (P,)."""
    order = np.argsort(images, kind="stable")
    starts = np.flatnonzero(np.diff(images[order], prepend=-1))
    for positions in np.split(order, starts[1:]) if len(order) else ():
        yield int(images[positions[0]]), positions


class PicturesOf:
    """`pictures[(_, [row])]`: picture, as of `picture_on_canvas`, or damaged, [(row, sentence)], of a source."""

    def __init__(self, source, smallest, largest):
        self.source, self.sides = source, (smallest, largest)

    def __getitem__(self, key):
        row = int(key[1][0])
        try:
            return {"picture": picture_on_canvas(self.source.read(row), self.source.name(row), *self.sides)}
        except DamagedImage as error:
            return {"damaged": [(row, str(error))]}


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
