"""Features of the images and prompts of a classification set: computed once per data set and model, then cached.

What is kept is what the towers give before anything is normalised, in float32; all programs share it.
"""

from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.classes.class_set import ClassImages
from clip_vl.datasets.images.crops import EvalCrop
from clip_vl.encoding.cache import cached_features
from clip_vl.encoding.encode import TextsOf, encode_numbers
from clip_vl.engine.errors import DataError

BLOCK = 1024  # rows that one process computes at a time, and a killed one can lose


def image_features(images, side, args, device, stop):
    """The tower's features of the images of a `ClassSet`, float32 (N, width), on every process.

    side: says tower, digest, and `features(uint8 images)` -> (B, width);  stop: true when a signal asks to end
    """
    tower = side.tower
    crop = EvalCrop(
        tower.resolution, tower.interpolation, args.image_crop or images.crop or tower.crop, tower.short_side
    )
    described = f"image {side.digest} {crop.crop} {crop.short_side} {args.precision}"
    found = _cached(
        ClassImages(images, crop), images.pixels_digest, described, len(images),
        lambda batch: side.features(batch["images"]), args, device, stop,
    )  # fmt: skip
    wrong = np.flatnonzero(~np.isfinite(found).all(1))
    if len(wrong):
        raise DataError(f"{images.title}: the features of {images.ids[wrong[0]]} are not finite (--precision?)")
    return torch.from_numpy(found)


def prompt_features(prompts, side, args, device, stop):
    """The text side's features of `Prompts`, float32 (C * T, D), not normalised.

    side: says digest, tokenizer, and `features(tokens)` -> (B, D)
    """
    described = f"text {side.digest} {args.max_seq_length} {args.precision}"
    texts = TextsOf(prompts, side.tokenizer)
    found = _cached(texts, prompts.digest, described, len(prompts), lambda batch: side.features(batch["tokens"]),
                    args, device, stop)  # fmt: skip
    if not np.isfinite(found).all():
        raise DataError("the features of the prompts are not finite (--precision?)")
    return torch.from_numpy(found)


def _cached(dataset, digest, described, count, encode, args, device, stop):
    def encode_block(numbers):
        return encode_numbers(dataset, numbers, encode, device, args, stop=stop)

    root = Path(args.datasets_dir) / "cache"
    return np.array(cached_features(digest, described, count, encode_block, root, dtype="float32", block=BLOCK).values)
