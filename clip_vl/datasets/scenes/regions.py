"""Scenes as a detector would see them: exact boxes, objects and attributes, and features from the pixels inside."""

import functools

import numpy as np
from PIL import Image

from clip_vl.datasets.scenes.scene import ATTRIBUTES

SIDE = 12  # pixels to which the inside of a box is scaled
WIDTH = 256  # of a feature
OBJECTS, LOOKS = ATTRIBUTES["shape"], ATTRIBUTES["color"]  # the class is the place in the list


@functools.cache
def _projection():
    """A fixed random matrix (SIDE * SIDE * 3, WIDTH): it keeps distances, so a feature shows what the pixels show."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((SIDE * SIDE * 3, WIDTH), dtype=np.float32) / np.sqrt(SIDE * SIDE * 3)


def scene_regions(scene, picture):
    """The region record (`datasets.regions`) of a `Scene` and its PIL picture: a region for each thing.

    Features are rectified random projections of the inside of the box, so never negative, as a detector's are. How
    large a thing is shows in its box alone.
    """
    boxes = np.array([thing.box for thing in scene.things], dtype=np.float32)
    boxes = boxes.clip(0, [scene.width, scene.height] * 2)
    crops = [picture.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=tuple(map(float, box))) for box in boxes]
    pixels = np.stack([np.asarray(crop, dtype=np.float32).reshape(-1) / 127.5 - 1 for crop in crops])
    certain = np.ones(len(boxes), dtype=np.float32)
    return {
        "features": np.maximum(4 * pixels @ _projection(), 0).astype(np.float16),
        "boxes": boxes,
        "objects_id": np.array([OBJECTS.index(thing.shape) for thing in scene.things], dtype=np.int64),
        "objects_conf": certain,
        "attrs_id": np.array([LOOKS.index(thing.color) for thing in scene.things], dtype=np.int64),
        "attrs_conf": certain,
        "img_h": scene.height,
        "img_w": scene.width,
    }
