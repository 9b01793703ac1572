"""The tasks beside VQA: for each its images, its files under <data root>/<task>, and its classes."""

from collections.abc import Callable
from typing import NamedTuple

from clip_vl.datasets.images.collections import FLICKR30K, GQA, NLVR, NLVR2, Collection
from clip_vl.datasets.lxmert.entries import read_nlvr2_entry, read_nlvr_entry, read_vqa_entry

ENTAILMENTS = ("contradiction", "entailment", "neutral")  # the order of the published checkpoints
TRUTH = ("False", "True")


class Task(NamedTuple):
    """splits: the files, in the groups that the program reads together by default; classes: None: in the label files;
    images_of: the keys of an entry that name its images
    """

    collection: Collection
    splits: tuple
    classes: tuple | None = None
    read_entry: Callable = read_vqa_entry
    images_of: tuple = ("img_id",)


TASKS = {
    "gqa": Task(GQA, (("train", "valid"), ("testdev",), ("submit",))),
    "snli_ve": Task(FLICKR30K, (("train",), ("dev",), ("test",)), ENTAILMENTS),
    "nlvr2": Task(NLVR2, (("train",), ("dev",), ("test1",), ("test2",)), TRUTH, read_nlvr2_entry, ("img0", "img1")),
    "nlvr": Task(NLVR, (("train",), ("dev",), ("test",)), TRUTH, read_nlvr_entry, ("img0",)),
}
