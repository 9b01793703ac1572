"""COCO's annotation files, captions and instances, through pycocotools."""

import contextlib
import io
import re
from collections import Counter
from pathlib import Path

import numpy as np

from clip_vl.datasets.official.files import expected_form, read_official, text_of
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.text import id_of

MAX_BYTES = 1 << 30  # the largest official file, the instances of train2017, has 450 MB


def open_coco(path):
    """pycocotools' index of an official file, which it keeps in memory as a whole."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise UserError(
            f"pycocotools, which reads {path}, is not installed: `python -m pip install pycocotools`"
        ) from None
    if path.exists() and (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes, more than any annotation file of COCO; fetch it again")
    with expected_form(path), contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        coco = COCO()
        coco.dataset = read_official(path)
        for number, annotation in enumerate(coco.dataset["annotations"], start=1):
            annotation.setdefault("id", -number)  # COCO's ids are positive
            annotation["image_id"] = int(id_of(annotation["image_id"]))
        for image in coco.dataset.get("images", ()):
            image["id"] = int(id_of(image["id"]))
        doubled = [i for i, n in Counter(a["id"] for a in coco.dataset["annotations"]).items() if n > 1]
        if doubled:
            raise DataError(f"{path} has two annotations of the id {doubled[0]!r:.40}; fetch it again")
        coco.createIndex()
    return coco


def coco_captions(path):
    """(image id, caption) of each annotation of a captions file, in the order of the file."""
    coco = open_coco(path)
    with expected_form(path):
        return [(entry["image_id"], text_of(entry, "caption")) for entry in coco.loadAnns(coco.getAnnIds())]


class BoxLabels:
    """Object labels of region records from COCO's instances: the category of the instance with the largest IoU.

    paths: files of instances, such as those of train2014 and val2014; `relabelled` and `kept` count the records
    A class is the index of a category among the sorted category ids, its confidence the IoU. A box whose largest IoU is
    below LEAST has confidence 0, which excludes it from the losses.
    """

    LEAST = 0.5  # IoU

    def __init__(self, paths):
        self.files = {Path(path): open_coco(Path(path)) for path in paths}
        ids = {path: sorted(coco.getCatIds()) for path, coco in self.files.items()}
        (first, self.categories), *others = ids.items()
        for path, found in others:
            if found != self.categories:
                raise UserError(f"{path} and {first} have different categories; pass files of one release")
        self.relabelled = self.kept = 0

    def __call__(self, img_id, record):
        """The record with labels from the instances of its image; unchanged where no file lists the image."""
        number = re.search(r"(?:^|_)(\d+)$", img_id)
        for path, coco in self.files.items():
            if number and int(number[1]) in coco.imgs and _is_of(img_id, coco.imgs[int(number[1])]):
                self.relabelled += 1
                with expected_form(path):
                    return record | self._objects(coco, int(number[1]), record["boxes"])
        self.kept += 1
        return record

    def _objects(self, coco, number, boxes):
        from pycocotools.mask import iou

        found = coco.loadAnns(coco.getAnnIds(imgIds=[number], iscrowd=False))
        classes, overlap = np.zeros(len(boxes), np.int64), np.zeros(len(boxes), np.float32)
        if found:
            theirs = np.array([entry["bbox"] for entry in found], dtype=np.float64).reshape(len(found), 4)
            ours = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).astype(np.float64)
            overlaps = iou(ours, theirs, [0] * len(found))  # (K, instances)
            best, overlap = overlaps.argmax(axis=1), overlaps.max(axis=1).astype(np.float32)
            classes = np.array([self.categories.index(entry["category_id"]) for entry in found], np.int64)[best]
        covered = overlap >= self.LEAST
        return {"objects_id": classes * covered, "objects_conf": overlap * covered}


def _is_of(img_id, image):
    """Whether an image of a file has this id in a store: COCO_val2014_000000000042, or 42."""
    return not img_id.startswith("COCO_") or Path(str(image["file_name"])).stem in (img_id, img_id.rsplit("_", 1)[1])
