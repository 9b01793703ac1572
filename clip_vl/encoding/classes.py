"""Features of the images and prompts of a classification set: encoded once per dataset and model, and kept.

What is kept is the output of the towers before anything is normalised, in float32; all programs share it.
"""

import numpy as np
import torch

from clip_vl.datasets.classes.class_set import ClassImages
from clip_vl.datasets.images.crops import EvalCrop
from clip_vl.encoding.encode import TextsOf
from clip_vl.engine.errors import DataError


def image_features(images, side, encoder, image_crop=None, stop=None):
    """The tower's features of the images of a `ClassSet`, float32 (N, width), on every process.

    side:       has tower, digest, and `features(uint8 images)` -> (B, width)
    image_crop: of `EvalCrop`; without it the dataset's, or the tower's own
    stop:       true when a signal asks to stop
    """
    tower = side.tower
    crop = EvalCrop(tower.resolution, tower.interpolation, image_crop or images.crop or tower.crop, tower.short_side)
    found = encoder.cached(
        ClassImages(images, crop), np.arange(len(images)), lambda batch: side.features(batch["images"]),
        source=images.pixels_digest, model=f"image {side.digest} {crop.crop} {crop.short_side}", stop=stop,
    )  # fmt: skip
    wrong = np.flatnonzero(~np.isfinite(found.values).all(1))
    if len(wrong):
        raise DataError(f"{images.title}: the features of {images.ids[wrong[0]]} are not finite (--precision?)")
    return torch.from_numpy(np.array(found.values))


def prompt_features(prompts, side, encoder, max_length, stop=None):
    """The text side's features of `Prompts`, float32 (C * T, D), not normalised.

    side: has digest, tokenizer, and `features(tokens)` -> (B, D);  max_length: tokens of a text at most
    """
    found = encoder.cached(
        TextsOf(prompts, side.tokenizer), np.arange(len(prompts)), lambda batch: side.features(batch["tokens"]),
        source=prompts.digest, model=f"text {side.digest} {max_length}", stop=stop,
    )  # fmt: skip
    if not np.isfinite(found.values).all():
        raise DataError("the features of the prompts are not finite (--precision?)")
    return torch.from_numpy(np.array(found.values))
