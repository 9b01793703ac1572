"""COCO's annotation files through pycocotools: what its index says, and what is refused."""

import json
import sys

import pytest

from clip_vl.datasets import coco as module
from clip_vl.datasets.coco import coco_captions, open_coco
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
    with pytest.raises(DataError, match=r"c\.json:1: .* is the file whole"):
        coco_captions(tmp_path / "c.json")
    monkeypatch.setattr(module, "MAX_BYTES", 10)
    with pytest.raises(DataError, match="has 17 bytes, more than any annotation file of COCO"):
        open_coco(tmp_path / "c.json")


def test_without_pycocotools_the_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools.coco", None)
    with pytest.raises(UserError, match="`python -m pip install pycocotools` installs it"):
        open_coco(write(tmp_path / "c.json", {"annotations": []}))
