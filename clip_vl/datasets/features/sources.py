"""Visual features computed before training, in the place of images: a tower's grids, or a detector's regions."""

import functools
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.features.regions import normalised_boxes, open_regions, region_width
from clip_vl.datasets.features.store import open_features
from clip_vl.datasets.images.canvas import canvas_size
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.images.image_folders import ImageFolders, check_recorded
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError

DETECTED = {"obj": "objects", "attr": "attrs"}  # label -> how the fields of a record begin


def grid_meta(args, stride):
    """What a store of grid features says of itself: all that the features depend on beside images and weights."""
    sizes = {"image_size_min": args.image_size_min, "image_size_max": args.image_size_max}
    return {"kind": "grid", "clip_model_name": args.clip_model_name, "stride": stride} | sizes


def open_stored(args, collection, region_labels):
    """The source of --features: comma-separated paths of one kind, regions without --input_raw_images, else grids."""
    paths, images = [Path(path) for path in args.features.split(",") if path], ImageFolders(args.data_root, collection)
    if args.input_raw_images:
        return GridSource(paths, args, images)
    return RegionSource(paths, args, images, region_labels)


class StoredSource:
    """Records of one or several stores by image id. Holds paths: any worker can have a copy."""

    def __init__(self, stores, images):
        self.stores, self.images = stores, images
        for store in stores:
            if not store.meta["complete"]:
                dist.print0(f"warning: {store.path} is not complete; what writes it goes on where it stopped")

    def record(self, img_id):
        """The record of an image in the first store that has it. Raises DamagedImage."""
        for store in self.stores[:-1]:
            if img_id in _names(store):
                return store.load(img_id)
        return self.stores[-1].load(img_id)

    def read(self, img_id):
        """The bytes of the image file, for the report; none where only features are at hand."""
        try:
            return self.images.read(img_id)
        except DamagedImage:
            return b""


@functools.lru_cache(maxsize=16)
def _names(store):
    return frozenset(store.keys())


class GridSource(StoredSource):
    """Grid features that `python -m clip_vl.extract_features` wrote, with the methods of `ImageFolders`."""

    kind = "grids"

    def __init__(self, paths, args, images):
        super().__init__([open_features(path) for path in paths], images)
        for path, store in zip(paths, self.stores):
            found = {name: store.meta.get(name) for name in grid_meta(args, 0)}
            wanted = grid_meta(args, found["stride"])
            if found != wanted:
                differences = [
                    f"{name} {found[name]} and not {wanted[name]}" for name in wanted if found[name] != wanted[name]
                ]
                raise UserError(f"{path} holds features of {', '.join(differences)}; extract them with the same flags")
        self.channels, self.stride = self.stores[0].meta["channels"], self.stores[0].meta["stride"]

    def load(self, img_id, m, M, recorded_size=None):
        """float16 (C, h, w). Raises DamagedImage."""
        record = self.record(img_id)
        check_recorded(img_id, (record["height"], record["width"]), recorded_size)
        return torch.from_numpy(record["grid"])

    def blank(self, m, M, size):
        rows, columns = (side // self.stride for side in canvas_size(*size, m, M))
        return torch.zeros((self.channels, rows, columns), dtype=torch.float16)


class RegionSource(StoredSource):
    """Regions of a detector in any form that `regions.open_regions` reads, with the methods of `ImageFolders`.

    labels: {"obj": classes, "attr": classes} or some of them, what is asked of the regions beside their features
    """

    kind = "regions"

    def __init__(self, paths, args, images, labels):
        super().__init__([open_regions(path) for path in paths], images)
        self.width, self.labels = args.region_dim, dict(labels)
        for path, store in zip(paths, self.stores):
            kind = store.meta.get("kind", self.kind)
            if kind != self.kind:
                raise UserError(f"{path} holds features of kind {kind}; pass --input_raw_images to use them")
            if (width := region_width(store)) != self.width:
                raise UserError(f"{path} holds regions with {width} numbers each; pass --region_dim {width}")

    def load(self, img_id, m, M, recorded_size=None):
        """A dict of features (K, F), boxes (K, 4) in 0..1, and per label its classes and confidences (K,), as arrays.

        Raises DamagedImage.
        """
        record = self.record(img_id)
        if record["features"].shape[1] != self.width:
            raise DamagedImage(img_id, f"has regions with {record['features'].shape[1]} numbers, not {self.width}")
        shown = {"features": record["features"], "boxes": normalised_boxes(record, img_id)}
        for name, classes in self.labels.items():
            ids, confidences = (record.get(f"{DETECTED[name]}_{part}") for part in ("id", "conf"))
            if ids is None or confidences is None:
                raise DamagedImage(img_id, f"has no {DETECTED[name]} detected, which --visualLosses {name} asks for")
            if not 0 <= ids.min() <= ids.max() < classes:
                raise DamagedImage(img_id, f"has {DETECTED[name]} of class {ids.min()} to {ids.max()} of {classes}")
            shown |= {name: ids, f"{name}_conf": confidences}
        return shown

    def blank(self, m, M, size):
        """No region at all."""
        labels = {name: np.zeros(0, np.int64) for name in self.labels}
        labels |= {f"{name}_conf": np.zeros(0, np.float32) for name in self.labels}
        return {"features": np.zeros((0, self.width), np.float16), "boxes": np.zeros((0, 4), np.float32)} | labels
