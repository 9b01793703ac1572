"""Digests of image files: what was recorded is held to, damage that decodes is found, interruptions cost nothing."""

import pickle
import subprocess

import numpy as np
import pytest
from PIL import Image

from clip_vl.datasets.images import digest_list
from clip_vl.datasets.images.collections import COCO_VG, digest_list_path
from clip_vl.datasets.images.decoding import DamagedImage, decode_image
from clip_vl.datasets.images.digest_list import DigestList, record_digests
from clip_vl.datasets.images.image_folders import ImageFolders
from clip_vl.datasets.images.image_lmdb_writer import write_images
from clip_vl.datasets.images.inventory import list_collection
from clip_vl.engine.errors import DataError

FOLDER = "vg_raw_images/VG_100K"


@pytest.fixture
def root(tmp_path):
    """A data root of eight noisy pictures with recorded digests."""
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / "mscoco").mkdir()
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 255, (24, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(tmp_path / FOLDER / f"{number}.jpg")
    record(tmp_path)
    return tmp_path


def record(root):
    return record_digests(digest_list_path(root), root, list_collection(root, COCO_VG)[0])


def change(path):
    """Flip bits until the file decodes to another picture without an error."""
    before = path.read_bytes()
    for place in range(len(before) - 3, 0, -1):
        data = bytearray(before)
        data[place] ^= 1
        try:
            if not decode_image(bytes(data)).equal(decode_image(before)):
                path.write_bytes(data)
                return
        except DamagedImage:
            pass
    raise AssertionError("no such bit")


def test_the_list_is_one_that_sha256sum_checks(root):
    checked = ["sha256sum", "--strict", "--check", "mscoco/image_sha256.txt"]
    done = subprocess.run(checked, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.count(": OK") == 8


def test_another_picture_under_a_recorded_name_is_damaged_and_named(root):
    source = ImageFolders(root)
    assert source.load("3").shape[0] == 3
    change(root / FOLDER / "3.jpg")
    with pytest.raises(DamagedImage, match=r"3\.jpg: does not have the content that was recorded: its digest differs"):
        source.load("3")
    assert source.load("4").shape[0] == 3
    digest_list_path(root).unlink()
    assert ImageFolders(root).load("3").shape[0] == 3  # without a list nobody can tell


def test_an_image_that_was_not_recorded_is_refused_with_the_way_out(root):
    for name in ("000", "35", "9"):  # before, between and behind the recorded names
        (root / FOLDER / f"{name}.jpg").write_bytes((root / FOLDER / "1.jpg").read_bytes())
        with pytest.raises(DamagedImage, match=r"is not in .*; `python -m clip_vl\.prepare digests` adds"):
            ImageFolders(root).load(name)
    assert record(root) == (3, {})
    assert ImageFolders(root).load("35").shape[0] == 3


def test_a_repeat_keeps_what_was_recorded_and_never_takes_over_a_change(root):
    before = digest_list_path(root).read_bytes()
    change(root / FOLDER / "3.jpg")
    assert record(root) == (0, {})
    assert digest_list_path(root).read_bytes() == before


def test_an_interrupted_recording_goes_on_and_shows_no_list_before_its_end(root, monkeypatch):
    path, whole = digest_list_path(root), digest_list_path(root).read_bytes()
    path.unlink()
    read, calls = digest_list._digest, []

    def interrupted(file):
        calls.append(file.name)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return read(file)

    monkeypatch.setattr(digest_list, "BLOCK", 2)
    monkeypatch.setattr(digest_list, "_digest", interrupted)
    with pytest.raises(KeyboardInterrupt):
        record_digests(path, root, list_collection(root, COCO_VG)[0], workers=1)
    part = path.with_name("image_sha256.txt.part")
    assert not path.exists() and part.read_bytes().count(b"\n") >= 4
    part.write_bytes(part.read_bytes() + b"0123")  # the half line of a killed writer
    calls.clear()
    monkeypatch.setattr(digest_list, "_digest", lambda file: calls.append(file.name) or read(file))
    assert record(root) == (8, {}) and len(calls) <= 4
    assert path.read_bytes() == whole and not part.exists()


def test_an_unreadable_file_is_returned_with_its_reason(root):
    (root / FOLDER / "9.jpg").mkdir()
    assert record(root) == (0, {f"{FOLDER}/9.jpg": "Is a directory"})


def cut(lines):
    return b"".join(lines)[:-20]


def swap(lines):
    return b"".join([lines[1], lines[0], *lines[2:]])


def twice(lines):
    return b"".join([lines[0], *lines])


def letter(lines):
    return b"".join([lines[0].replace(lines[0][:1], b"g", 1), *lines[1:]])


@pytest.mark.parametrize("damage, line", [(cut, 8), (swap, 2), (twice, 2), (letter, 1)])
def test_a_damaged_list_is_refused_with_its_line(root, damage, line):
    path = digest_list_path(root)
    path.write_bytes(damage(path.read_bytes().splitlines(keepends=True)))
    with pytest.raises(DataError, match=rf"image_sha256\.txt:{line}: .*delete the list"):
        ImageFolders(root)
    with pytest.raises(DataError, match=rf"image_sha256\.txt:{line}: "):
        record(root)


def test_an_empty_list_is_refused(root):
    digest_list_path(root).write_bytes(b"")
    with pytest.raises(DataError, match="is empty"):
        ImageFolders(root)


def test_a_copy_of_the_list_travels_to_workers_as_a_path(root):
    data = (root / FOLDER / "2.jpg").read_bytes()
    copy = pickle.loads(pickle.dumps(DigestList(digest_list_path(root))))
    assert copy.complaint(f"{FOLDER}/2.jpg", data) is None
    assert "digest differs" in copy.complaint(f"{FOLDER}/2.jpg", data + b"x")


def test_an_image_store_takes_only_what_was_recorded(root, tmp_path):
    change(root / FOLDER / "3.jpg")
    files = sorted((root / FOLDER).iterdir())
    source = ImageFolders(root)
    damaged = write_images(tmp_path / "store.lmdb", files, 64, 96,
                           check=lambda file, data: source.check(file.relative_to(root), data))  # fmt: skip
    assert [error.path for error in damaged] == [str(root / FOLDER / "3.jpg")]
