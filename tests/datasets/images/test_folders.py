"""Image folders: nothing lost or overwritten when they are unnested, sizes as Pillow reads them, faults named."""

import json
import os

import pytest
from PIL import Image

from clip_vl.datasets.images import folders as image_folders
from clip_vl.datasets.images.collections import NLVR2
from clip_vl.datasets.images.folders import (
    count_absent,
    flatten_nlvr2,
    flatten_visual_genome,
    list_images,
    measure_images,
    read_sizes,
    save_unreadable,
)
from clip_vl.engine.errors import DataError, UserError


def picture(path, size=(8, 6), color=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (color, color, color)).save(path)
    return path


def vg(tmp_path, *parts):
    return tmp_path.joinpath("vg_raw_images", "VG_100K", *parts)


def nested_root(tmp_path, count=3):
    for number in range(count):
        picture(vg(tmp_path, "VG_100K", f"{number}.jpg"), color=number)
        picture(vg(tmp_path, "VG_100K_2", f"{number + 100}.jpg"), color=number)
    return tmp_path


def test_nested_visual_genome_is_flattened_and_a_repeat_does_nothing(tmp_path):
    root = nested_root(tmp_path)
    assert flatten_visual_genome(root) == (6, [])
    assert {path.name for path in vg(root).iterdir()} == {f"{number}.jpg" for number in (0, 1, 2, 100, 101, 102)}
    assert flatten_visual_genome(root) == (0, [])


def test_an_archive_unpacked_beside_the_folder_is_flattened_too(tmp_path):
    picture(tmp_path / "vg_raw_images" / "VG_100K_2" / "7.jpg")
    assert flatten_visual_genome(tmp_path) == (1, [])
    assert vg(tmp_path, "7.jpg").is_file()


def test_a_taken_name_is_never_overwritten_and_an_identical_copy_goes(tmp_path):
    root = nested_root(tmp_path, count=2)
    mine = picture(vg(root, "0.jpg"), color=200).read_bytes()
    picture(vg(root, "1.jpg"), color=1)  # equal to its nested copy
    moved, kept = flatten_visual_genome(root)
    assert (moved, kept) == (3, [vg(root, "VG_100K", "0.jpg")])
    assert vg(root, "0.jpg").read_bytes() == mine
    assert kept[0].is_file() and not vg(root, "VG_100K", "1.jpg").exists()


def test_an_interrupted_flattening_loses_nothing_and_is_completed(tmp_path, monkeypatch):
    root = nested_root(tmp_path)
    move, calls = image_folders._move, []

    def interrupted(image, target):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return move(image, target)

    monkeypatch.setattr(image_folders, "_move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        flatten_visual_genome(root)
    assert len(list(vg(root).rglob("*.jpg"))) == 6
    monkeypatch.setattr(image_folders, "_move", move)
    assert flatten_visual_genome(root) == (4, [])
    assert len(list(vg(root).glob("*.jpg"))) == 6


def test_nlvr2_s_hundred_folders_are_flattened_whichever_way_they_were_unpacked(tmp_path):
    folders = ("nlvr2_raw_images/train/7", "nlvr2_raw_images/images/train/99", "nlvr2_raw_images/dev")
    for number, folder in enumerate(folders):
        split = "dev" if "dev" in folder else "train"
        picture(tmp_path / folder / f"{split}-{number}-0-img0.png")
    assert flatten_nlvr2(tmp_path) == (2, [])
    found, others = list_images(tmp_path, NLVR2)
    names = ("dev/dev-2-0-img0.png", "train/train-0-0-img0.png", "train/train-1-0-img0.png")
    assert sorted(found) == [f"nlvr2_raw_images/{name}" for name in names] and others == []


def test_a_linked_folder_of_that_name_is_left_alone(tmp_path):
    elsewhere = picture(tmp_path / "elsewhere" / "5.jpg").parent
    vg(tmp_path).mkdir(parents=True)
    vg(tmp_path, "VG_100K").symlink_to(elsewhere)
    assert flatten_visual_genome(tmp_path) == (0, [])
    assert (elsewhere / "5.jpg").is_file()


def test_images_that_cannot_be_moved_are_a_kind_error(tmp_path, monkeypatch):
    def refuse(image, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(image_folders, "_move", refuse)
    with pytest.raises(UserError, match=r"cannot be moved up to .*cross-device"):
        flatten_visual_genome(nested_root(tmp_path))


HOSTILE = ["12\n.jpg", "a\\b.jpg", ".jpg", "note.txt", "1.JPG", os.fsdecode(b"\xff.jpg"), "COCO_val2014_1.jpg"]


def test_only_names_that_an_annotation_can_give_are_images(tmp_path):
    """COCO_val2014_1.jpg in the train2014 folder can never be asked for: its name leads to val2014."""
    good = picture(tmp_path / "mscoco" / "train2014" / "COCO_train2014_000000000009.jpg")
    for name in HOSTILE:
        good.with_name(name).write_bytes(b"x")
    images, others = list_images(tmp_path)
    assert images == ["mscoco/train2014/COCO_train2014_000000000009.jpg"]
    assert sorted(others) == sorted(f"mscoco/train2014/{name}" for name in HOSTILE)


def sized_root(tmp_path):
    sizes = {"1.jpg": (8, 6), "2.jpg": (5, 9), "3.jpg": (640, 427)}
    for name, size in sizes.items():
        picture(vg(tmp_path, name), size)
    return {f"data/vg_raw_images/VG_100K/{name}": [height, width] for name, (width, height) in sizes.items()}


def test_sizes_are_height_then_width_under_the_published_keys(tmp_path):
    expected = sized_root(tmp_path)
    measured = measure_images(tmp_path, list_images(tmp_path)[0])
    assert measured.sizes == expected and measured.new == 3
    assert json.loads((tmp_path / "mscoco" / "width_heigths.json").read_text()) == expected


def test_known_sizes_are_kept_and_a_repeat_writes_nothing(tmp_path):
    sized_root(tmp_path)
    path = tmp_path / "mscoco" / "width_heigths.json"
    path.parent.mkdir()
    known = {"data/vg_raw_images/VG_100K/1.jpg": [1, 1], "data/mscoco/val2014/gone.jpg": [3, 4]}
    path.write_text(json.dumps(known))
    images = list_images(tmp_path)[0]
    measured = measure_images(tmp_path, images)
    assert measured.new == 2 and known.items() <= measured.sizes.items()
    assert "data/mscoco/val2014/gone.jpg" not in measured.usable(images)
    before = path.stat()
    assert measure_images(tmp_path, images).new == 0
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_ino == before.st_ino


def test_an_interrupted_measurement_keeps_what_it_has(tmp_path, monkeypatch):
    expected = sized_root(tmp_path)
    read = image_folders.read_image_size

    def interrupted(path):
        if path.name == "3.jpg":
            raise KeyboardInterrupt
        return read(path)

    monkeypatch.setattr(image_folders, "read_image_size", interrupted)
    images = list_images(tmp_path)[0]
    with pytest.raises(KeyboardInterrupt):
        measure_images(tmp_path, images)
    assert len(read_sizes(tmp_path / "mscoco" / "width_heigths.json")) == 2
    monkeypatch.setattr(image_folders, "read_image_size", read)
    measured = measure_images(tmp_path, images)
    assert measured.sizes == expected and measured.new == 1


def test_unreadable_images_have_no_size_and_are_listed_with_the_reason(tmp_path):
    sized_root(tmp_path)
    vg(tmp_path, "2.jpg").write_bytes(b"not an image")
    images = list_images(tmp_path)[0]
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
