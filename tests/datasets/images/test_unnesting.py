"""Unnesting of image folders: no image is lost or overwritten, and a repeat does nothing."""

import pytest
from PIL import Image

from clip_vl.datasets.images import unnesting
from clip_vl.datasets.images.collections import NLVR2
from clip_vl.datasets.images.inventory import list_collection
from clip_vl.datasets.images.unnesting import flatten_nlvr2, flatten_visual_genome
from clip_vl.engine.errors import UserError


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
    move, calls = unnesting._move, []

    def interrupted(image, target):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return move(image, target)

    monkeypatch.setattr(unnesting, "_move", interrupted)
    with pytest.raises(KeyboardInterrupt):
        flatten_visual_genome(root)
    assert len(list(vg(root).rglob("*.jpg"))) == 6
    monkeypatch.setattr(unnesting, "_move", move)
    assert flatten_visual_genome(root) == (4, [])
    assert len(list(vg(root).glob("*.jpg"))) == 6


def test_nlvr2_s_hundred_folders_are_flattened_whichever_way_they_were_unpacked(tmp_path):
    folders = ("nlvr2_raw_images/train/7", "nlvr2_raw_images/images/train/99", "nlvr2_raw_images/dev")
    for number, folder in enumerate(folders):
        split = "dev" if "dev" in folder else "train"
        picture(tmp_path / folder / f"{split}-{number}-0-img0.png")
    assert flatten_nlvr2(tmp_path) == (2, [])
    found, others = list_collection(tmp_path, NLVR2)
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

    monkeypatch.setattr(unnesting, "_move", refuse)
    with pytest.raises(UserError, match=r"cannot be moved up to .*cross-device"):
        flatten_visual_genome(nested_root(tmp_path))
