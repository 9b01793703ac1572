"""COCO's annotation files through pycocotools: what its index says, and what is refused."""

import json
import sys

import numpy as np
import pytest

from clip_vl.datasets.features.regions import open_regions
from clip_vl.datasets.official import coco as module
from clip_vl.datasets.official.coco import BoxLabels, coco_captions, open_coco
from clip_vl.engine.errors import DataError, UserError


def write(path, value):
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


def test_captions_come_in_the_order_of_the_file_and_say_nothing(tmp_path, capsys):
    rows = [{"id": 7, "image_id": 2, "caption": "Zwei"}, {"id": 3, "image_id": 1, "caption": "\u00e9in"}]
    rows += [{"image_id": 2, "caption": "without an id"}]
    path = write(tmp_path / "captions.json", {"images": [{"id": 1}, {"id": 2}], "annotations": rows})
    assert coco_captions(path) == [(row["image_id"], row["caption"]) for row in rows]
    assert not capsys.readouterr().out


def test_what_is_no_file_of_cocos_is_refused_with_its_name(tmp_path, monkeypatch):
    twice = {"annotations": [{"id": 1, "image_id": 1, "caption": "a"}] * 2}
    with pytest.raises(DataError, match=r"c\.json has two annotations of the id 1"):
        coco_captions(write(tmp_path / "c.json", twice))
    for value in ([], {}, {"annotations": 3}, {"annotations": [3]}, {"annotations": [{"id": 1, "caption": "a"}]}):
        with pytest.raises(DataError, match=r"c\.json"):
            coco_captions(write(tmp_path / "c.json", value))
    (tmp_path / "c.json").write_text('{"annotations": [')
    with pytest.raises(DataError, match=r"c\.json:1: .*cut short.*; fetch it again"):
        coco_captions(tmp_path / "c.json")
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="has 17 bytes, more than any annotation file of COCO"):
        open_coco(tmp_path / "c.json")


def test_without_pycocotools_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match="is not installed: `python -m pip install pycocotools`"):
        open_coco(write(tmp_path / "c.json", {"annotations": []}))


def instances(*annotations, categories=(3, 9)):
    images = [{"id": 42, "file_name": "COCO_val2014_000000000042.jpg"}]
    common = {"image_id": 42, "iscrowd": 0}
    rows = [common | {"id": i, "category_id": c, "bbox": b} for i, (c, b) in enumerate(annotations)]
    return {"images": images, "annotations": rows, "categories": [{"id": i, "name": str(i)} for i in categories]}


def test_a_box_has_the_category_that_overlaps_it_the_most(tmp_path):
    """[0, 0, 10, 10] meets half of itself and four fifths; [20, 0, 30, 10] a quarter; the crowd is nobody's."""
    value = instances((3, [0, 0, 5, 10]), (9, [0, 0, 8, 10]), (3, [20, 0, 2.5, 10]), (3, [40, 0, 10, 10]))
    value["annotations"][3]["iscrowd"] = 1
    labels = BoxLabels([write(tmp_path / "i.json", value)])
    boxes = np.float32([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    for img_id in ("COCO_val2014_000000000042", "42"):
        record = labels(img_id, {"boxes": boxes, "img_h": 20})
        assert record["objects_id"].tolist() == [1, 0, 0] and record["img_h"] == 20
        assert record["objects_conf"].tolist() == pytest.approx([0.8, 0, 0])
    other = {"boxes": boxes}
    assert labels("COCO_train2014_000000000042", other) is other and labels("n7x", other) is other
    assert (labels.relabelled, labels.kept) == (2, 2)


def test_instances_that_contradict_are_refused(tmp_path):
    one, two = (write(tmp_path / f"{n}.json", instances(categories=c)) for n, c in (("a", (1, 2)), ("b", (1, 3))))
    with pytest.raises(UserError, match=r"b\.json and .*a\.json have different categories"):
        BoxLabels([one, two])
    for annotation in ((3, [0, 0]), (7, [0, 0, 1, 1]), (3, "box")):
        labels = BoxLabels([write(tmp_path / "i.json", instances(annotation))])
        with pytest.raises(DataError, match=r"i\.json does not have its official form"):
            labels("42", {"boxes": np.float32([[0, 0, 1, 1]])})


def test_instances_of_the_built_in_pictures_give_the_labels_of_their_regions(programs, shapes_root, tmp_path):
    names = ",".join(str(shapes_root / "official" / f"instances_{split}2014.json") for split in ("train", "val"))
    source, target = shapes_root / "features" / "regions.lmdb", tmp_path / "labelled.lmdb"
    done = programs.run("convert", source, target, "--instances", names)
    before, after = open_regions(source), open_regions(target)
    coco = [name for name in before.keys() if "train2014" in name or "val2014" in name]
    assert f"boxes of {len(coco):,} images labelled" in done.stdout and len(coco) > 20
    for name in coco[::7]:
        theirs, ours = before.load(name), after.load(name)
        assert (theirs["objects_id"] == ours["objects_id"]).all() and ours["objects_conf"].min() > 0.999
