"""Batches of the fused encoder: images decoded once each and placed on one canvas, texts padded to the longest."""

import functools
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.images.canvas import (
    canvas_size,
    dynamic_canvas,
    is_portrait,
    image_box,
    place_on_canvas,
    resized_size,
)
from clip_vl.datasets.images.collections import COCO_VG
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.images.image_folders import ImageFolders
from clip_vl.datasets.lxmert.samplers import EvalBatches, TrainBatches, aspect_groups
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError


def split_paths(args, folder, splits):
    """The annotation files <data_root>/<folder>/<split>.json of comma-separated splits; an unknown one is an error."""
    paths = [Path(args.data_root) / folder / f"{split}.json" for split in splits.split(",") if split]
    for path in paths:
        if not path.is_file():
            known = sorted(p.stem for p in path.parent.glob("*.json")) or ["nothing; see data/README.md"]
            raise DataError(f"no split {path.stem!r}: {path} is not there ({path.parent} holds {', '.join(known)})")
    return paths


def open_images(args, collection=COCO_VG, region_labels=()):
    """What stands for the images of the data root: the folders, with --use_lmdb what `python -m clip_vl.prepare images`
    wrote, or with --features what a visual tower or a detector made of them.

    region_labels: {"obj": classes, "attr": classes} that the batches shall have of a detector's regions
    """
    if args.features:
        from clip_vl.datasets.features.sources import open_stored

        return open_stored(args, collection, region_labels)
    if not args.use_lmdb:
        return ImageFolders(args.data_root, collection)
    from clip_vl.datasets.images.image_lmdb import ImageLMDB, store_path

    m, M = args.image_size_min, args.image_size_max
    return ImageLMDB(store_path(args.data_root, m, M, collection), m, M, collection)


def size_file(args, collection=COCO_VG):
    """The file with the size of every image, by which images of like shape are batched."""
    path = Path(args.data_root) / collection.sizes
    if not path.is_file():
        raise DataError(
            f"{path} is not there; `python -m clip_vl.prepare check --data_root {args.data_root}` writes it"
        )
    return path


def train_batches(annotations, args, images_each=1):
    """The order of training: batches of images of like shape on one canvas, over the first --max_train_samples.

    images_each: how many consecutive items make one sample, such as a statement about two images; samples are numbered
    """
    index, groups, canvases = _shapes(annotations, args, args.max_train_samples, images_each)
    return TrainBatches(groups, canvases, args.batch_size, rank=dist.rank(), world_size=dist.world_size(),
                        seed=args.seed, image_of_item=index, sentences_per_image=args.sentences_per_image)  # fmt: skip


def eval_batches(annotations, args, images_each=1):
    """Fixed batches of the first --max_eval_samples, each evaluated by one rank, every sample exactly once."""
    index, _, canvases = _shapes(annotations, args, args.max_eval_samples, images_each)
    ranks = {"rank": dist.rank(), "world_size": dist.world_size()}
    return EvalBatches(canvases, args.batch_size, **ranks, image_of_item=index)


def _shapes(annotations, args, limit, images_each):
    """(first image, aspect group, canvas) of each sample, (N,) each, of the first `limit` samples.

    There is one canvas for all with --dynamic_padding, else portrait and landscape, or each combination of them.
    """
    heights, widths = np.asarray(annotations.image_sizes).T
    groups = aspect_groups(heights, widths, args.aspect_ratio_group_factor)
    canvases = is_portrait(heights, widths).astype(np.int16) * (not args.dynamic_padding)
    index = np.asarray(annotations.image_index[: limit and limit * images_each]).reshape(-1, images_each)
    return index[:, 0], _joint(groups[index]), _joint(canvases[index])


def _joint(classes):
    """One class for the images of a sample together: (N, n) small integers -> (N,)."""
    base = int(classes.max(initial=0)) + 1
    return functools.reduce(lambda joint, each: joint * base + each, classes.T)


def load_images(source, annotations, rows, args):
    """What the images of `rows` show: pixels on one canvas, stored grid features, or regions.

    returns a dict of what `place_pictures`, `stack_grids` or `pad_regions` gives, and image_of_text (B,), usable bool
    (B,), texts whose image could be read, and damaged, a list of (image id, reason); a damaged image is all zeros, and
    its texts must be left out of every loss
    """
    unique, image_of_text = np.unique(np.asarray(annotations.image_index[rows]), return_inverse=True)
    sizes = np.asarray(annotations.image_sizes[unique]).tolist()
    loaded, damaged, bad = [], [], []
    for place, (index, size) in enumerate(zip(unique, sizes)):
        image_id = annotations.image_ids[int(index)]
        try:
            loaded.append(source.load(image_id, args.image_size_min, args.image_size_max, size))
        except DamagedImage as error:
            damaged.append((image_id, str(error)))
            bad.append(place)
            loaded.append(source.blank(args.image_size_min, args.image_size_max, size))
    collate = {"images": place_pictures, "grids": stack_grids, "regions": pad_regions}[source.kind]
    return collate(loaded, sizes, args) | {
        "image_of_text": torch.from_numpy(image_of_text.astype(np.int64)),
        "damaged": damaged,
        "usable": torch.from_numpy(~np.isin(image_of_text, bad)),
    }


def place_pictures(pictures, sizes, args):
    """uint8 pictures (3, h, w) of images of these sizes -> images uint8 (N, 3, H, W), image_boxes (N, 4)."""
    m, M = args.image_size_min, args.image_size_max
    if args.dynamic_padding:
        canvas = dynamic_canvas([tuple(p.shape[1:]) for p in pictures], M)
    else:
        canvas = tuple(map(max, *(canvas_size(*size, m, M) for size in sizes), (0, 0)))
    images, boxes = place_on_canvas(pictures, canvas)
    return {"images": images, "image_boxes": boxes}


def stack_grids(grids, sizes, args):
    """float16 grids (C, h, w) -> grid_features (N, C, h, w), zeros below and right of a smaller one, image_boxes."""
    m, M = args.image_size_min, args.image_size_max
    rows, columns = (max(grid.shape[axis] for grid in grids) for axis in (1, 2))
    features = torch.zeros(len(grids), grids[0].shape[0], rows, columns, dtype=grids[0].dtype)
    for place, grid in zip(features, grids):
        place[:, : grid.shape[1], : grid.shape[2]] = grid
    boxes = [image_box(resized_size(*size, m, M), canvas_size(*size, m, M)) for size in sizes]
    return {"grid_features": features, "image_boxes": torch.tensor(boxes)}


def pad_regions(records, _sizes, _args):
    """Records of `RegionSource` -> region_features (N, K, F), region_boxes (N, K, 4), region_visible (N, K), and the
    labels and confidences that it was asked for, region_{obj,attr} and region_{obj,attr}_conf (N, K); K is at least 1.
    """
    K = max(1, *(len(record["features"]) for record in records))

    def padded(name):
        first = torch.as_tensor(records[0][name])
        rows = torch.zeros(len(records), K, *first.shape[1:], dtype=first.dtype)
        for row, record in zip(rows, records):
            row[: len(record[name])] = torch.as_tensor(record[name])
        return rows

    counts = torch.tensor([len(record["features"]) for record in records])
    batch = {f"region_{name}": padded(name) for name in records[0]}
    return batch | {"region_visible": torch.arange(K) < counts[:, None]}


def say_skipped(annotations):
    """The annotations, after a line about the entries that --skip_bad left out of them."""
    skipped, examples = (annotations.meta[name] for name in ("skipped", "skipped_examples"))
    if skipped:
        dist.print0(f"warning: {skipped} annotation entries of the wrong form are left out; the first: {examples[0]}")
    return annotations
