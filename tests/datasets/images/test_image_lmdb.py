"""The image LMDB: what is written is read back, by any process; interruptions lose little and damage is named."""

import json
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from clip_vl.datasets.images import image_lmdb_writer
from clip_vl.datasets.images.decoding import DamagedImage, decode_image
from clip_vl.datasets.images.image_folders import ImageFolders
from clip_vl.datasets.images.image_lmdb import ImageLMDB
from clip_vl.datasets.images.image_lmdb_writer import write_images
from clip_vl.engine.errors import DataError, UserError

SIZES = {
    "COCO_val2014_1": (90, 120),
    "COCO_val2014_2": (120, 90),
    "COCO_val2014_3": (60, 60),
    "7": (63, 64),
    "8": (40, 40),
}
m, M = 40, 66


@pytest.fixture
def data_root(tmp_path):
    """Smooth pictures of several shapes in the folders of a data root."""
    for img_id, (height, width) in SIZES.items():
        folder = tmp_path / ("mscoco/val2014" if "val2014" in img_id else "vg_raw_images/VG_100K")
        folder.mkdir(parents=True, exist_ok=True)
        rows, columns = np.mgrid[:height, :width]
        picture = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=-1)
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{img_id}.jpg", quality=97)
    return tmp_path


def files_of(data_root):
    return sorted(data_root.glob("*/*/*.jpg"))


@pytest.fixture
def stored(data_root):
    assert write_images(data_root / "lmdb", files_of(data_root), m, M) == []
    return data_root / "lmdb"


def change_value(path, name, change):
    with lmdb.open(str(path), map_size=2**30) as environment, environment.begin(write=True) as transaction:
        transaction.put(name.encode(), change(transaction.get(name.encode())))


def test_stored_pictures_are_those_of_the_folders_up_to_the_jpeg_loss(data_root, stored):
    folders, images = ImageFolders(data_root), ImageLMDB(stored, m, M)
    for img_id, size in SIZES.items():
        expected = folders.load(img_id, m, M, recorded_size=size)
        found = images.load(img_id, m, M, recorded_size=size)
        assert found.shape == expected.shape and found.dtype == torch.uint8
        assert (found.float() - expected.float()).abs().mean() < 2


def test_the_store_lists_its_names_and_original_sizes(stored):
    names = {f"{img_id}.jpg": size for img_id, size in SIZES.items()}
    images = ImageLMDB(stored, m, M)
    assert images.keys() == sorted(names)
    assert {name: images.get(name)[0] for name in names} == names
    assert {name: tuple(size) for name, size in json.loads((stored / "sizes.json").read_text()).items()} == names


def test_a_jpeg_that_needs_no_resizing_keeps_its_bytes(data_root, stored):
    images = ImageLMDB(stored, m, M)
    assert images.read("8") == ImageFolders(data_root).read("8")
    assert tuple(decode_image(images.read("7")).shape) == (3, 40, 40)


def test_what_is_no_jpeg_becomes_one(tmp_path):
    Image.new("RGB", (40, 40), (200, 10, 10)).save(tmp_path / "5.jpg", "PNG")
    write_images(tmp_path / "lmdb", [tmp_path / "5.jpg"], m, M)
    assert ImageLMDB(tmp_path / "lmdb", m, M).read("5").startswith(b"\xff\xd8")


def test_workers_and_copies_read_after_their_parent_did(stored):
    images = ImageLMDB(stored, m, M)
    alone = [images.load(img_id, m, M) for img_id in SIZES]

    class Pictures(torch.utils.data.Dataset):
        def __len__(self):
            return len(SIZES)

        def __getitem__(self, index):
            return images.load(list(SIZES)[index], m, M)

    for _ in range(2):
        for expected, found in zip(alone, DataLoader(Pictures(), batch_size=None, num_workers=2), strict=True):
            assert torch.equal(expected, found)
    copy = pickle.loads(pickle.dumps(images))
    assert copy.read("7") == images.read("7") == ImageLMDB(stored, m, M).read("7")


def test_damaged_files_are_returned_and_left_out(data_root):
    broken, missing = data_root / "vg_raw_images/VG_100K/9.jpg", data_root / "vg_raw_images/VG_100K/10.jpg"
    broken.write_bytes(files_of(data_root)[0].read_bytes()[:500])
    damaged = write_images(data_root / "lmdb", [*files_of(data_root), missing], m, M, workers=3)
    assert [error.path for error in damaged] == [str(broken), str(missing)]
    images = ImageLMDB(data_root / "lmdb", m, M)
    assert len(images.keys()) == len(SIZES)
    with pytest.raises(DamagedImage, match=r"lmdb/9\.jpg: is not in the store"):
        images.load("9", m, M)


# ---- interruptions ----


def test_writing_goes_on_where_it_was_interrupted(data_root, monkeypatch):
    """Stopped in the third transaction, it redoes that one only."""
    monkeypatch.setattr(image_lmdb_writer, "COMMIT_EVERY", 2)
    done, redone = [], []

    def interrupt(count):
        done.append(count)
        if sum(done) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_images(data_root / "lmdb", files_of(data_root), m, M, advance=interrupt)
    assert len(ImageLMDB(data_root / "lmdb", m, M).keys()) == 4

    resized, name = image_lmdb_writer._resized_value, "_resized_value"
    monkeypatch.setattr(image_lmdb_writer, name, lambda file, *size: redone.append(file) or resized(file, *size))
    counts = []
    assert write_images(data_root / "lmdb", files_of(data_root), m, M, advance=counts.append) == []
    assert redone == files_of(data_root)[4:] and sum(counts) == len(SIZES)
    assert len(ImageLMDB(data_root / "lmdb", m, M).keys()) == len(SIZES)


def test_a_killed_writer_leaves_a_store_that_opens_and_can_be_finished(data_root, monkeypatch):
    monkeypatch.setattr(image_lmdb_writer, "COMMIT_EVERY", 1)

    def write_and_die(kill_at):
        torch.set_num_threads(1)
        done = []
        write_images(
            data_root / "lmdb",
            files_of(data_root),
            m,
            M,
            advance=lambda count: done.append(count) or (sum(done) == kill_at and os.kill(os.getpid(), signal.SIGKILL)),
        )

    image_lmdb_writer.jpeg_decoder()  # the children inherit the import
    for kill_at in (1, 3, 5):
        child = multiprocessing.get_context("fork").Process(target=write_and_die, args=(kill_at,))
        child.start()
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        assert len(ImageLMDB(data_root / "lmdb", m, M).keys()) == kill_at - 1
    assert write_images(data_root / "lmdb", files_of(data_root), m, M) == []
    images = ImageLMDB(data_root / "lmdb", m, M)
    assert [images.get(name)[0] for name in images.keys()] == [SIZES[Path(name).stem] for name in images.keys()]


# ---- damage ----


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda value: value[:-1], "digest differs"),
        (lambda value: value[:200] + bytes([value[200] ^ 1]) + value[201:], "digest differs"),
        (lambda value: bytes([value[0] ^ 1]) + value[1:], "digest differs"),  # in the recorded size
        (lambda value: value[:10], "only 10 bytes"),
        (lambda value: b"", "only 0 bytes"),
    ],
)
def test_a_damaged_value_is_named(stored, change, reason):
    change_value(stored, "7.jpg", change)
    with pytest.raises(DamagedImage, match=rf"lmdb/7\.jpg: .*{reason}"):
        ImageLMDB(stored, m, M).load("7", m, M)
    assert ImageLMDB(stored, m, M).read("8")


def test_the_value_of_another_image_is_noticed(stored):
    with lmdb.open(str(stored), map_size=2**30) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"7.jpg", transaction.get(b"8.jpg"))
    with pytest.raises(DamagedImage, match="digest differs"):
        ImageLMDB(stored, m, M).read("7")


def test_a_store_cut_short_is_refused_before_it_is_read(stored):
    """A map read past the end of its file kills the process with a bus error."""
    with Path(stored, "data.mdb").open("r+b") as file:
        file.truncate(file.seek(0, os.SEEK_END) // 2)
    for use in [lambda: ImageLMDB(stored, m, M)] * 2 + [lambda: write_images(stored, [], m, M)]:
        with pytest.raises(DataError, match="bytes; copy it again"):
            use()


def test_an_image_of_another_original_size_than_recorded_is_damaged(stored):
    with pytest.raises(DamagedImage, match="is 64x63 but recorded as 63x64"):
        ImageLMDB(stored, m, M).load("7", m, M, recorded_size=(64, 63))


@pytest.mark.parametrize("img_id", ["../8", "/etc/passwd", "a\0b", ""])
def test_hostile_ids_are_refused(stored, img_id):
    with pytest.raises(DataError, match="plain file name"):
        ImageLMDB(stored, m, M).read(img_id)


def test_a_store_for_other_sizes_is_refused_by_reader_and_writer(data_root, stored):
    with pytest.raises(UserError, match=r"short side 40, long side at most 66, not .* short side 384"):
        ImageLMDB(stored)
    with pytest.raises(UserError, match=r"short side 40, long side at most 66, not .* short side 48"):
        write_images(stored, files_of(data_root), 48, 80)


def test_no_store_is_an_error_that_says_how_to_make_one(tmp_path):
    with pytest.raises(UserError, match=r"none is not an image LMDB: .*clip_vl\.prepare"):
        ImageLMDB(tmp_path / "none", m, M)
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "data.mdb").write_bytes(b"junk" * 5000)
    with pytest.raises(UserError, match=r"junk is not an image LMDB"):
        ImageLMDB(tmp_path / "junk", m, M)
    lmdb.open(str(tmp_path / "other")).close()
    with pytest.raises(UserError, match="other holds something else"):
        ImageLMDB(tmp_path / "other", m, M)


def test_a_store_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/lmdb cannot be written"):
        write_images(tmp_path / "file" / "lmdb", [], m, M)


def test_reading_writes_nothing(stored):
    """So that a store on a read-only disk can be read."""
    (stored / "lock.mdb").unlink()
    before = {path: path.stat().st_mtime_ns for path in stored.iterdir()}
    assert len(ImageLMDB(stored, m, M).keys()) == len(SIZES)
    assert {path: path.stat().st_mtime_ns for path in stored.iterdir()} == before
