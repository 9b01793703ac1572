"""COCO's annotation files, captions and instances, through pycocotools."""

import contextlib
import io
from collections import Counter

from clip_vl.datasets.official import expected_form, read_official
from clip_vl.engine.errors import DataError, UserError

MAX_BYTES = 1 << 30  # the largest official file, the instances of train2017, has 450 MB


def open_coco(path):
    """pycocotools' index of an official file, which it holds in memory as a whole."""
    try:
        from pycocotools.coco import COCO
    except ImportError:
        raise UserError(
            f"{path} is read with pycocotools, which is not there: `python -m pip install pycocotools` installs it"
        ) from None
    if path.exists() and (size := path.stat().st_size) > MAX_BYTES:
        raise DataError(f"{path} has {size:,} bytes, more than any annotation file of COCO; fetch it again")
    with expected_form(path), contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        coco = COCO()
        coco.dataset = read_official(path)
        for number, annotation in enumerate(coco.dataset["annotations"], start=1):
            annotation.setdefault("id", -number)  # COCO's own are positive
        doubled = [i for i, n in Counter(a["id"] for a in coco.dataset["annotations"]).items() if n > 1]
        if doubled:
            raise DataError(f"{path} has two annotations of the id {doubled[0]!r:.40}; fetch it again")
        coco.createIndex()
    return coco


def coco_captions(path):
    """(image id, caption) of each annotation of a captions file, in its order."""
    coco = open_coco(path)
    with expected_form(path):
        return [(entry["image_id"], entry["caption"]) for entry in coco.loadAnns(coco.getAnnIds())]
