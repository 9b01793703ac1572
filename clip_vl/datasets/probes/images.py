"""The images of probes, with the box of an item cut out of them."""

import io
from pathlib import Path

import torch

from clip_vl.datasets.images.decoding import DamagedImage, decode_image

FINE, CLAMPED, DAMAGED = 0, 1, 2


def cut(image, box):
    """(the part of an image (3, H, W) in a box, whether the box had to be clamped). DamagedImage if it is empty."""
    if box is None:
        return image, False
    height, width = image.shape[1:]
    left, top, right, bottom = box
    inside = max(left, 0), max(top, 0), min(right, width), min(bottom, height)
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        raise DamagedImage("image", f"has {width} x {height} pixels and none in the box {box}")
    return image[:, inside[1] : inside[3], inside[0] : inside[2]], inside != tuple(box)


class CropsOf:
    """`crops[(_, numbers)]`: images uint8 (B, 3, S, S), status (B,), problems [sentence]; a damaged one is black.

    crops: [Crop] of a `Plan`;  view: `EvalCrop`
    """

    def __init__(self, crops, view):
        self.crops, self.view = crops, view

    def __getitem__(self, key):
        views, status, problems = [], [], []
        for number in key[1]:
            image, state, problem = read_crop(self.crops[int(number)])
            black = torch.zeros(3, self.view.resolution, self.view.resolution, dtype=torch.uint8)
            views.append(black if image is None else self.view.view(image))
            status.append(state)
            problems += problem
        return {"images": torch.stack(views), "status": torch.tensor(status, dtype=torch.uint8), "problems": problems}


def read_crop(crop):
    """(the image in the box of a `Crop`, uint8 (3, h, w), FINE or CLAMPED, []), or (None, DAMAGED, [sentence])."""
    try:
        image, clamped = cut(decode_image(_read(crop.name), crop.name), crop.box)
        return image, CLAMPED if clamped else FINE, []
    except DamagedImage as error:
        return None, DAMAGED, [f"{crop.name}: {error.reason}"]


class TextList:
    """What `TextsOf` reads from: texts by number."""

    def __init__(self, texts):
        self.texts = texts

    def text(self, number):
        return self.texts[number]


def distinct_by_tokens(texts, tokenizer, batch_size=1024):
    """(positions of the texts that differ in their tokens, number of each text among those).

    What a text tower cannot tell apart, such as captions that differ in case, has exactly one feature, so that ties are
    ties: encoded in different batches they could differ by a rounding.
    """
    known, kept, numbers = {}, [], []
    for start in range(0, len(texts), batch_size):
        for index, key in enumerate(_token_keys(tokenizer(texts[start : start + batch_size])), start):
            if key not in known:
                known[key] = len(kept)
                kept.append(index)
            numbers.append(known[key])
    return kept, numbers


def _token_keys(tokens):
    """A hashable key per row of tokens, the same whatever padding its batch needed."""
    tokens = tokens if isinstance(tokens, dict) else {"ids": tokens}
    mask = tokens.get("attention_mask")
    rows = {name: value.tolist() for name, value in tokens.items() if name != "attention_mask"}
    for i in range(len(next(iter(rows.values())))):
        lists = [row[i] for row in rows.values()]
        if mask is not None:
            lists = [[t for t, seen in zip(row, mask[i].tolist()) if seen] for row in lists]
        yield tuple(tuple(_stripped(row)) for row in lists)


def _stripped(row):
    end = len(row)
    while end and row[end - 1] == 0:
        end -= 1
    return row[:end]


def part_of_image(path, box):
    """The bytes of a PNG of the part of an image in a box, for a card of the report."""
    from PIL import Image

    image, _ = cut(decode_image(_read(path), path), box)
    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()


def _read(path):
    try:
        return (Path(path) if isinstance(path, str) else path).read_bytes()
    except OSError as error:
        raise DamagedImage(path, f"cannot be read: {error.strerror}") from None
