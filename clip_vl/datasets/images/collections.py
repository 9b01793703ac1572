"""The image folders of each dataset under the data root, and the file that records the sizes of its images."""

from pathlib import Path
from typing import NamedTuple

from clip_vl.engine.errors import DataError

COCO_FOLDERS = ("train2014", "val2014", "test2015")
VG_FOLDER = "vg_raw_images/VG_100K"


class Collection(NamedTuple):
    """The images of one dataset.

    folders: part of an image id -> folder under the data root; the first part found in the id is used
    sizes:   the file that records [height, width] of every image
    """

    name: str
    folders: dict
    suffix: str
    sizes: str


COCO_VG = Collection(
    "coco_vg",
    {name: f"mscoco/{name}" for name in COCO_FOLDERS} | {"": VG_FOLDER},
    ".jpg",
    "mscoco/width_heigths.json",  # (sic) the published name; its values are [height, width]
)
GQA = Collection("gqa", {"": "gqa_raw_images/images"}, ".jpg", "gqa_raw_images/width_heigths.json")
FLICKR30K = Collection("flickr30k", {"": "flickr30k_images"}, ".jpg", "flickr30k_images/width_heigths.json")
NLVR2 = Collection(
    "nlvr2",
    {f"{name}-": f"nlvr2_raw_images/{name}" for name in ("train", "dev", "test1", "test2")},
    ".png",
    "nlvr2_raw_images/width_heigths.json",
)
NLVR = Collection("nlvr", {"": "nlvr_raw_images"}, ".png", "nlvr_raw_images/width_heigths.json")
COLLECTIONS = (COCO_VG, GQA, FLICKR30K, NLVR2, NLVR)


def relative_path(img_id, collection=COCO_VG):
    """The path of an image under the data root, for example mscoco/train2014/COCO_train2014_000000000009.jpg.

    In COCO_VG an id that contains the name of a COCO folder is of that folder, any other is a Visual Genome number. Ids
    come from annotation files: DataError for one that is not a plain file name.
    """
    if not img_id or not img_id.isprintable() or "/" in img_id or "\\" in img_id or len(img_id.encode()) > 240:
        raise DataError(f"img_id {img_id!r:.80} is not a plain file name; image ids name files of the image folders")
    folder = next((folder for part, folder in collection.folders.items() if part in img_id), None)
    if folder is None:
        parts = ", ".join(collection.folders)
        raise DataError(f"img_id {img_id!r:.80} is in no folder of {collection.name}: it must contain one of {parts}")
    return f"{folder}/{img_id}{collection.suffix}"


def image_path(data_root, img_id, collection=COCO_VG):
    """The file of an image; never outside its folder."""
    return Path(data_root, relative_path(img_id, collection))


def size_key(relative):
    """The key of width_heigths.json for a path under the data root; as published it starts with data/ for any root."""
    return f"data/{relative}"


def digest_list_path(data_root, collection=COCO_VG):
    """The file of a data root with the recorded digests of a collection's images; it may be absent."""
    return Path(data_root, collection.sizes).with_name(LIST)


LIST = "image_sha256.txt"
