"""Inventories of image folders: sizes as Pillow reads them, and every fault named."""

import json
import os

import pytest
from PIL import Image

from clip_vl.datasets.images import inventory
from clip_vl.datasets.images.inventory import (
    count_absent,
    list_collection,
    measure_images,
    read_sizes,
    save_unreadable,
)
from clip_vl.engine.errors import DataError


def picture(path, size=(8, 6), color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, color, color)).save(path)
    return path


def vg(tmp_path, name):
    return tmp_path / "vg_raw_images" / "VG_100K" / name


HOSTILE = ["12\n.jpg", "a\\b.jpg", ".jpg", "note.txt", "1.JPG", os.fsdecode(b"\xff.jpg"), "COCO_val2014_1.jpg"]


def test_only_names_that_an_annotation_can_give_are_images(tmp_path):
    """COCO_val2014_1.jpg in the train2014 folder can never be asked for: its name leads to val2014."""
    good = picture(tmp_path / "mscoco" / "train2014" / "COCO_train2014_000000000009.jpg")
    for name in HOSTILE:
        good.with_name(name).write_bytes(b"x")
    images, others = list_collection(tmp_path)
    assert images == ["mscoco/train2014/COCO_train2014_000000000009.jpg"]
    assert sorted(others) == sorted(f"mscoco/train2014/{name}" for name in HOSTILE)


def sized_root(tmp_path):
    sizes = {"1.jpg": (8, 6), "2.jpg": (5, 9), "3.jpg": (640, 427)}
    for name, size in sizes.items():
        picture(vg(tmp_path, name), size)
    return {f"data/vg_raw_images/VG_100K/{name}": [height, width] for name, (width, height) in sizes.items()}


def test_sizes_are_height_then_width_under_the_published_keys(tmp_path):
    expected = sized_root(tmp_path)
    measured = measure_images(tmp_path, list_collection(tmp_path)[0])
    assert measured.sizes == expected and measured.new == 3
    assert json.loads((tmp_path / "mscoco" / "width_heigths.json").read_text()) == expected


def test_known_sizes_are_kept_and_a_repeat_writes_nothing(tmp_path):
    sized_root(tmp_path)
    path = tmp_path / "mscoco" / "width_heigths.json"
    path.parent.mkdir()
    known = {"data/vg_raw_images/VG_100K/1.jpg": [1, 1], "data/mscoco/val2014/gone.jpg": [3, 4]}
    path.write_text(json.dumps(known))
    images = list_collection(tmp_path)[0]
    measured = measure_images(tmp_path, images)
    assert measured.new == 2 and known.items() <= measured.sizes.items()
    assert "data/mscoco/val2014/gone.jpg" not in measured.usable(images)
    before = path.stat()
    assert measure_images(tmp_path, images).new == 0
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino


def test_an_interrupted_measurement_keeps_what_it_has(tmp_path, monkeypatch):
    expected = sized_root(tmp_path)
    read = inventory.read_image_size

    def interrupted(path):
        if path.name == "3.jpg":
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(inventory, "read_image_size", interrupted)
    images = list_collection(tmp_path)[0]
    with pytest.raises(KeyboardInterrupt):
        measure_images(tmp_path, images)
    assert len(read_sizes(tmp_path / "mscoco" / "width_heigths.json")) == 2
    monkeypatch.setattr(inventory, "read_image_size", read)
    measured = measure_images(tmp_path, images)
    assert measured.sizes == expected and measured.new == 1


def test_unreadable_images_have_no_size_and_are_listed_with_the_reason(tmp_path):
    sized_root(tmp_path)
    vg(tmp_path, "2.jpg").write_bytes(b"not an image")
    images = list_collection(tmp_path)[0]
    measured = measure_images(tmp_path, images)
    assert list(measured.unreadable) == ["vg_raw_images/VG_100K/2.jpg"]
    listing = save_unreadable(tmp_path, measured.unreadable)
    assert listing.read_text().startswith("vg_raw_images/VG_100K/2.jpg\tis not an image")
    assert measured.usable(images) == {f"data/vg_raw_images/VG_100K/{n}.jpg" for n in (1, 3)}
    save_unreadable(tmp_path, {})
    assert not listing.exists()


@pytest.mark.parametrize("content", ["[1]", '{"a": [1]}', '{"a": [1, 0]}', '{"a": [1, 2.5]}'])
def test_a_size_file_of_another_form_is_an_error(tmp_path, content):
    (tmp_path / "mscoco").mkdir()
    (tmp_path / "mscoco" / "width_heigths.json").write_text(content)
    with pytest.raises(DataError, match="delete it"):
        read_sizes(tmp_path / "mscoco" / "width_heigths.json")


def test_entries_without_their_image_are_counted_hostile_names_among_them(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([{"img_id": name} for name in ("1", "2", "../1", "/etc/passwd", "1\n")]))
    assert count_absent(path, {"data/vg_raw_images/VG_100K/1.jpg"}) == (5, 4, "2")


def test_an_entry_without_img_id_is_named_by_its_line(tmp_path):
    path = tmp_path / "train.json"
    path.write_text('[\n{"img_id": "1"},\n{"image": 1}\n]')
    with pytest.raises(DataError, match=r"train.json:3: .*img_id"):
        count_absent(path, set())
