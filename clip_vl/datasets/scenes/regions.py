"""Region features of scenes: exact boxes, object classes and attributes, and features of the pixels in each box."""

import functools

import numpy as np
from PIL import Image

from clip_vl.datasets.scenes.scene import ATTRIBUTES

SIDE = 12  # pixels; each box is resized to this square
WIDTH = 256  # of a feature
OBJECTS, LOOKS = ATTRIBUTES["shape"], ATTRIBUTES["color"]  # a class is an index into these


@functools.cache
def _projection():
    """A fixed random matrix (SIDE * SIDE * 3, WIDTH), which approximately preserves the distances of pixels."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((SIDE * SIDE * 3, WIDTH), dtype=np.float32) / np.sqrt(SIDE * SIDE * 3)


def scene_regions(scene, image):
    """The region record (`features.records`) of a `Scene` and its PIL image: one region per object.

    Features are random projections of the resized box after a ReLU, so never negative, like a detector's. Only the box
    tells the size of an object.
    """
    boxes = np.array([thing.box for thing in scene.things], dtype=np.float32)
    boxes = boxes.clip(0, [scene.width, scene.height] * 2)
    crops = [image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=tuple(map(float, box))) for box in boxes]
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
