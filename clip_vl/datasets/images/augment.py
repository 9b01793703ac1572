"""Augmentation for image classification: random crop, flip, RandAugment, and random erasing of batches."""

import contextlib
import math
import random

import numpy as np
import torch

from clip_vl.datasets.images.crops import TrainCrop, draw_box
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.engine.random import numpy_rng

RANDAUGMENT = "rand-m9-mstd0.5-inc1"


class AugmentedImages:
    """`images[(epoch, rows)]`: images uint8 (B, 3, S, S), labels (B,), rows, and damaged [(id, sentence)].

    images: a `ClassSet`;  every draw is keyed by (seed, epoch, row)
    heavy:  RandAugment after the crop (arXiv:1909.13719); otherwise crop and flip alone
    A damaged image is black.
    """

    def __init__(self, images, resolution, seed, heavy=True):
        self.images, self.crop, self.seed = images, TrainCrop(resolution, "torchvision"), seed
        self.change = rand_augment(resolution) if heavy else None

    def __getitem__(self, key):
        epoch, rows = key
        views, damaged = [], []
        for row in map(int, rows):
            try:
                views.append(self._view(row, numpy_rng(self.seed, "augment", int(epoch), row)))
            except DamagedImage as error:
                damaged.append((self.images.ids[row], str(error)))
                views.append(torch.zeros(3, self.crop.resolution, self.crop.resolution, dtype=torch.uint8))
        labels = torch.from_numpy(np.asarray(self.images.labels[rows], np.int64))
        return {"images": torch.stack(views), "labels": labels, "rows": torch.as_tensor(rows), "damaged": damaged}

    def _view(self, row, rng):
        image = self.images.image(row)
        view = self.crop.cut(image, draw_box(*image.shape[1:], self.crop.kind.scale, rng))
        view = view.flip(2) if rng.random() < 0.5 else view
        return self.change(view, rng) if self.change else view


def rand_augment(resolution):
    """timm's RandAugment of the published recipe: (uint8 (3, S, S), NumPy generator) -> uint8 (3, S, S)."""
    from PIL import Image
    from timm.data.auto_augment import rand_augment_transform

    options = {"translate_const": int(resolution * 0.45), "img_mean": (124, 116, 104), "interpolation": 3}
    operations = rand_augment_transform(RANDAUGMENT, options)

    def change(view, rng):
        with seeded(int(rng.integers(2**32))):
            changed = operations(Image.fromarray(view.permute(1, 2, 0).contiguous().numpy()))
        return torch.from_numpy(np.array(changed)).permute(2, 0, 1).contiguous()

    return change


@contextlib.contextmanager
def seeded(seed):
    """Inside, the global generators of `random` and NumPy start at a seed; afterwards they are as before."""
    states = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


def erase(images, rng, prob=0.25, area=(0.02, 1 / 3), aspect=0.3, tries=10):
    """Random erasing (arXiv:1708.04896): in a share of the images one box becomes noise of unit variance.

    images: float (B, 3, H, W), normalised, changed in place
    """
    height, width = images.shape[-2:]
    for image in images:
        if rng.random() >= prob:
            continue
        for _ in range(tries):
            size, shape = (
                rng.uniform(*area) * height * width,
                math.exp(rng.uniform(math.log(aspect), -math.log(aspect))),
            )
            h, w = round(math.sqrt(size * shape)), round(math.sqrt(size / shape))
            if h < height and w < width:
                top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
                noise = rng.standard_normal((3, h, w)).astype(np.float32)
                image[:, top : top + h, left : left + w] = torch.from_numpy(noise).to(image)
                break
    return images
