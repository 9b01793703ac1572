"""Bytes of an image file -> the square uint8 image of a dual encoder, (3, S, S); the device normalises it.

Training takes a random box of the image, evaluation open_clip's transform. Only the box is resized.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from clip_vl.datasets.images.decoding import decode_image, jpeg_decoder, resize
from clip_vl.engine.errors import UserError

RATIOS = (3 / 4, 4 / 3)  # least and largest width / height of random boxes
TRIES = 10  # boxes drawn before the largest one of an allowed ratio is taken, as in torchvision
BLUR_KERNEL = 21
BLUR_SIGMA = (0.1, 2.0)
JITTER = {"brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.2}
LONGEST = 16  # times S: of an image that would be longer after the resize only the centre is resized
COLOUR_SHARE = 0.2  # probability of each of jitter, grey and blur


class Kind(NamedTuple):
    scale: tuple  # least and largest share of the image's area
    flip: bool
    colours: bool = False


KINDS = {
    "openclip": Kind((0.9, 1.0), flip=False),
    "torchvision": Kind((0.08, 1.0), flip=True),
    "torchvision-late": Kind((0.9, 1.0), flip=True),
    "protoclip-light": Kind((0.5, 1.0), flip=True, colours=True),
}


def draw_box(height, width, scale, rng):
    """(top, left, height, width) of a box of random area and ratio, as torchvision's RandomResizedCrop draws it."""
    low, high = scale
    for _ in range(TRIES):
        area = height * width * (low + (high - low) * rng.random())
        ratio = RATIOS[0] * (RATIOS[1] / RATIOS[0]) ** rng.random()  # log-uniform
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    ratio = min(max(width / height, RATIOS[0]), RATIOS[1])
    h, w = min(height, round(width / ratio)), min(width, round(height * ratio))
    return (height - h) // 2, (width - w) // 2, h, w


class TrainCrop:
    """A random view of a kind of `KINDS`: `crop(data, rng, name)` -> uint8 (3, S, S). Raises DamagedImage."""

    def __init__(self, resolution, kind="openclip", interpolation="bicubic"):
        if kind not in KINDS:
            raise UserError(f"the augmentation {kind!r} is not one of {', '.join(KINDS)}")
        self.resolution, self.kind, self.interpolation = resolution, KINDS[kind], interpolation
        jpeg_decoder()  # before workers start: its import takes seconds
        if self.kind.colours:
            _colours()

    def __call__(self, data, rng, name="image"):
        image = decode_image(data, name)
        view = self.cut(image, draw_box(*image.shape[1:], self.kind.scale, rng))
        if self.kind.flip and rng.random() < 0.5:
            view = view.flip(2)
        return change_colours(view, rng) if self.kind.colours else view

    def cut(self, image, box):
        """The box (top, left, height, width) of a decoded image, resized to the view."""
        top, left, height, width = box
        size = (self.resolution, self.resolution)
        return resize(image[:, top : top + height, left : left + width], size, self.interpolation)


@functools.cache
def _colours():
    from torchvision.transforms.v2 import functional

    return functional


def change_colours(image, rng):
    """Jitter in a random order, grey, blur, each with probability 0.2: the light augmentation of ProtoCLIP."""
    functional = _colours()
    if rng.random() < COLOUR_SHARE:
        for name in rng.permutation(list(JITTER)):
            strength = JITTER[name]
            base = 0.0 if name == "hue" else 1.0
            image = getattr(functional, f"adjust_{name}")(image, rng.uniform(base - strength, base + strength))
    if rng.random() < COLOUR_SHARE:
        image = functional.rgb_to_grayscale(image, num_output_channels=3)
    if rng.random() < COLOUR_SHARE:
        kernel = min(BLUR_KERNEL, image.shape[1] - 1 | 1)  # odd, and at most what a small image can reflect
        image = functional.gaussian_blur(image, [kernel, kernel], [rng.uniform(*BLUR_SIGMA)] * 2)
    return image


class EvalCrop:
    """open_clip's evaluation transform up to the normalisation: `crop(data, rng, name)` -> uint8 (3, S, S).

    Equal to that of an RGB image within 2 levels of 255 (0.02 on average). An image with alpha, a palette or CMYK is
    converted to RGB before it is resized; open_clip's transform converts it afterwards, with another result.

    crop: "short_side" resizes the short side to `short_side` pixels (0: the resolution) and crops the centre,
          "squash" resizes to the square, "pad" resizes the long side and pads with black
    """

    def __init__(self, resolution, interpolation="bicubic", crop="short_side", short_side=0):
        if crop not in ("short_side", "squash", "pad"):
            raise UserError(f"the crop {crop!r} is not one of short_side, squash, pad")
        self.resolution, self.interpolation, self.crop = resolution, interpolation, crop
        self.short_side = short_side or resolution
        jpeg_decoder()

    def __call__(self, data, rng=None, name="image"):
        return self.view(decode_image(data, name))

    def view(self, image):
        S, (height, width) = self.resolution, image.shape[1:]
        if self.crop == "squash":
            return resize(image, (S, S), self.interpolation)
        if self.crop == "pad":
            ratio = max(height, width) / S
            size = max(round(height / ratio), 1), max(round(width / ratio), 1)  # at least one pixel
            return _centre(resize(image, size, self.interpolation), S)
        size = short_side_size(height, width, self.short_side)
        if max(size) > LONGEST * S:
            return _centre_alone(image, size, S, self.interpolation)
        return _centre(resize(image, size, self.interpolation), S)


def short_side_size(height, width, short):
    """(height, width) with that short side; the long side is rounded down, as in torchvision."""
    if height <= width:
        return short, int(short * width / height)
    return int(short * height / width), short


def _centre(image, S):
    """The centre crop of an image, padded with black: (3, S, S). Halves round to even, as published."""
    height, width = image.shape[1:]
    if height < S or width < S:
        left, top = (S - width) // 2 if width < S else 0, (S - height) // 2 if height < S else 0
        image = F.pad(image, (left, max(S - width - left, 0), top, max(S - height - top, 0)))
        height, width = image.shape[1:]
    top, left = round((height - S) / 2), round((width - S) / 2)
    return image[:, top : top + S, left : left + S]


def _centre_alone(image, size, S, interpolation):
    """`_centre(resize(image, size), S)` of a very long image, of which only the centre is resized.

    The whole of 1 x 1,000,000 pixels would be 224 x 224,000,000 pixels after the resize, 150 GB.
    """
    from PIL import Image

    resample, box, bounds = Image.Resampling[interpolation.upper()], [], []
    for length, new in zip(image.shape[1:], size):
        scale, out = length / new, min(S, new)
        start = round((new - out) / 2)
        margin = 3 * max(scale, 1) + 1  # pixels that the filters read
        first, last = max(int(start * scale - margin), 0), min(int((start + out) * scale + margin) + 1, length)
        bounds.append((first, last))
        box.append((start * scale - first, (start + out) * scale - first))
    (top, bottom), (left, right) = bounds
    part = Image.fromarray(image[:, top:bottom, left:right].permute(1, 2, 0).numpy())
    shape = min(S, size[1]), min(S, size[0])
    view = part.resize(shape, resample, box=(box[1][0], box[0][0], box[1][1], box[0][1]))
    return _centre(torch.from_numpy(np.array(view)).permute(2, 0, 1), S)


def eval_crop(tower, crop=""):
    """The evaluation crop of an image tower: its own, or `crop`, one of `EvalCrop`'s."""
    return EvalCrop(tower.resolution, tower.interpolation, crop or tower.crop, tower.short_side)


def train_crop(tower, augmentation="", builder="", crop=""):
    """The training crop of an image tower.

    augmentation: a kind of `KINDS`, with or without "-augmentation"; "none" for the evaluation crop; "" for that of
                  the library that `builder` names
    crop:         of the evaluation crop, as in `eval_crop`
    """
    if augmentation == "none":
        return eval_crop(tower, crop)
    kind = "torchvision" if builder in ("torchvision", "timm") else "openclip"
    kind = augmentation.removesuffix("-augmentation") if augmentation else kind
    return TrainCrop(tower.resolution, kind, tower.interpolation)
