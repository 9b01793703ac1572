"""Feature stores: both containers give back what was put, survive kills, name damage, and run nothing foreign."""

import itertools
import json
import multiprocessing
import os
import pickle
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import h5py
import lmdb
import lz4.frame
import msgpack
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from clip_vl.datasets.features import hdf5_store as feature_hdf5
from clip_vl.datasets.features import lmdb_store as feature_lmdb
from clip_vl.datasets.features import records as feature_records
from clip_vl.datasets.features import store as feature_store
from clip_vl.datasets.features.store import merge_features, open_features, write_features
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.engine.errors import DataError, UserError

META = {"model": "RN50", "shape": [3, 4]}
SUFFIXES = ("lmdb", "h5")


def record_of(number):
    """A record with a field of every kind; the number makes it differ from others."""
    generator = np.random.default_rng(number)
    return {
        "features": generator.standard_normal((3, 4)).astype(np.float16),
        "boxes": generator.standard_normal((2, 4)).astype(np.float32),
        "objects_id": generator.integers(0, 1600, 2),
        "valid": np.array([True, False]),
        "none": np.zeros((0, 5), np.float32),
        "height": 480 + number,
        "scale": 0.1,
        "caption": "naïve café",
    }


def write(path, numbers, meta=META):
    with write_features(path, meta) as writer:
        for number in numbers:
            if not writer.done(f"image_{number}"):
                writer.put(f"image_{number}", record_of(number))


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert type(found[name]) is type(value), name
        if isinstance(value, np.ndarray):
            assert found[name].dtype == value.dtype and found[name].shape == value.shape, name
        assert np.array_equal(found[name], value), name


def change_value(path, img_id, change):
    with lmdb.open(str(path), map_size=2**30) as environment, environment.begin(write=True) as transaction:
        transaction.put(img_id.encode(), change(transaction.get(img_id.encode())))


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    return tmp_path / f"features.{request.param}"


@pytest.fixture
def stored(path):
    write(path, range(5))
    return path


def test_what_is_put_is_read_back_equal_from_either_container(stored):
    features = open_features(stored)
    assert features.meta == {**META, "format": 1, "complete": True}
    assert features.keys() == [f"image_{number}" for number in range(5)] and len(features) == 5
    for number in range(5):
        assert_equal(features.load(f"image_{number}"), record_of(number))


def test_arrays_read_are_writable_so_that_torch_takes_them(stored):
    record = open_features(stored).load("image_0")
    assert all(value.flags.writeable for value in record.values() if isinstance(value, np.ndarray))


def test_numpy_scalars_come_back_as_plain_numbers_from_either_container(path):
    with write_features(path, META) as writer:
        writer.put("a", {"int": np.int32(7), "float": np.float32(0.5), "array": np.array(9), "bool": np.True_})
    assert_equal(open_features(path).load("a"), {"int": 7, "float": 0.5, "array": 9, "bool": 1})


NO_RECORDS = [
    {"x": np.array([None])},
    {"x": np.array(["text"])},
    {"x": np.zeros(2, complex)},
    {"x": np.zeros(2, np.longdouble)},
    {"x": np.zeros(2, "f4,f4")},
    {"x": None},
    {"x": {"y": 1}},
    {"a/b": 1},
    {".": 1},
    {"": 1},
    {7: 1},
]


@pytest.mark.parametrize("record", NO_RECORDS)
def test_what_is_not_a_flat_record_of_plain_numbers_is_refused(path, record):
    with write_features(path, META) as writer, pytest.raises(ValueError, match="has a field"):
        writer.put("a", record)
    assert len(open_features(path)) == 0


class Records(torch.utils.data.Dataset):
    def __init__(self, features):
        self.features = features

    def __len__(self):
        return 5

    def __getitem__(self, index):
        return torch.from_numpy(self.features.load(f"image_{index}")["features"])


def test_workers_and_copies_read_after_their_parent_did(stored):
    features = open_features(stored)
    alone = [Records(features)[index] for index in range(5)]
    for copy in (features, pickle.loads(pickle.dumps(features))):
        for expected, found in zip(alone, DataLoader(Records(copy), batch_size=None, num_workers=2), strict=True):
            assert torch.equal(expected, found)
    assert torch.equal(Records(features)[3], alone[3])  # the workers did not disturb their parent's handle


def test_reading_writes_nothing(stored):
    """So that a store on a read-only disk can be read."""
    before = {file: file.stat().st_mtime_ns for file in stored.parent.rglob("*")}
    assert len(open_features(stored).load("image_0")) == 8
    assert {file: file.stat().st_mtime_ns for file in stored.parent.rglob("*")} == before


def test_a_finished_writer_leaves_only_the_store(stored):
    assert [file.name for file in stored.parent.iterdir()] == [stored.name]


# ---- writing on ----


def test_a_store_can_be_extended_and_is_incomplete_meanwhile(stored, monkeypatch):
    monkeypatch.setattr(feature_lmdb, "COMMIT_EVERY", 1)
    monkeypatch.setattr(feature_hdf5, "SEGMENT", 1)
    with pytest.raises(KeyboardInterrupt), write_features(stored, META) as writer:
        assert writer.done("image_4") and not writer.done("image_5")
        writer.put("image_5", record_of(5))
        assert writer.done("image_5")
        raise KeyboardInterrupt
    features = open_features(stored)
    assert not features.meta["complete"] and len(features) == 6
    assert_equal(features.load("image_5"), record_of(5))
    assert_equal(features.load("image_0"), record_of(0))
    write(stored, range(7))
    features = open_features(stored)
    assert features.meta["complete"] and len(features) == 7
    for number in range(7):
        assert_equal(features.load(f"image_{number}"), record_of(number))


def test_an_exception_loses_nothing(path):
    with pytest.raises(RuntimeError, match="mine"), write_features(path, META) as writer:
        writer.put("image_0", record_of(0))
        raise RuntimeError("mine")
    features = open_features(path)
    assert not features.meta["complete"]
    assert_equal(features.load("image_0"), record_of(0))


def test_the_later_of_two_records_stays(path, monkeypatch):
    for segment in (1, 1000):
        monkeypatch.setattr(feature_hdf5, "SEGMENT", segment)
        with write_features(path, META) as writer:
            for number in (1, 2, segment):
                writer.put("a", record_of(number))
        assert_equal(open_features(path).load("a"), record_of(segment))
        assert len(open_features(path)) == 1


def test_writing_nothing_to_a_complete_store_leaves_it_complete(stored):
    before = stored.stat().st_ino
    write(stored, range(5))
    assert stored.stat().st_ino == before and open_features(stored).meta["complete"]


def test_another_meta_is_refused_with_both_shown(stored):
    with pytest.raises(UserError, match=r"holds \{'model': 'RN50'.*not \{'model': 'RN101'"):
        write(stored, [6], {**META, "model": "RN101"})
    assert len(open_features(stored)) == 5


def test_another_meta_is_refused_while_the_first_is_not_complete(path):
    with suppress(KeyboardInterrupt), write_features(path, META):
        raise KeyboardInterrupt
    with pytest.raises(UserError, match="RN101"):
        write(path, [6], {**META, "model": "RN101"})


def test_a_second_writer_is_refused(path):
    with write_features(path, META) as writer:
        with pytest.raises(UserError, match="another process is writing"):
            write(path, [0])
        writer.put("image_1", record_of(1))
    write(path, [2])
    assert len(open_features(path)) == 2


@pytest.mark.parametrize("img_id", ["../8", "/etc/passwd", "a\0b", "", ".", "..", "image_0/features"])
def test_hostile_ids_are_refused(stored, img_id):
    with pytest.raises(DataError, match="plain file name"):
        open_features(stored).load(img_id)
    with write_features(stored, META) as writer, pytest.raises(DataError, match="plain file name"):
        writer.put(img_id, record_of(0))


# ---- kills ----


def write_endlessly(path, put):
    with write_features(path, META) as writer:
        for number in itertools.count():
            if not writer.done(f"image_{number}"):
                writer.put(f"image_{number}", record_of(number))
                put.value += 1
                time.sleep(0.0002)


def in_child(target, *args):
    child = multiprocessing.get_context("fork").Process(target=target, args=args)
    child.start()
    return child


def test_a_writer_killed_at_random_moments_loses_at_most_a_batch_and_is_finished_by_a_rerun(path, monkeypatch):
    monkeypatch.setattr(feature_lmdb, "COMMIT_EVERY", 4)
    monkeypatch.setattr(feature_hdf5, "SEGMENT", 4)
    moments, kept = random.Random(0), 0
    for _ in range(6):
        put = multiprocessing.Value("i", 0, lock=False)
        child = in_child(write_endlessly, path, put)
        enough = moments.randrange(1, 30)
        while put.value < enough and child.is_alive():
            time.sleep(0.0005)
        time.sleep(moments.random() * 0.01)
        os.kill(child.pid, signal.SIGKILL)
        child.join(30)
        assert child.exitcode == -signal.SIGKILL
        features = open_features(path)
        assert not features.meta["complete"]
        assert kept + put.value - 4 <= len(features) <= kept + put.value + 1  # one may be put but not yet counted
        kept = len(features)
        for img_id in features.keys():
            assert_equal(features.load(img_id), record_of(int(img_id.removeprefix("image_"))))
    write(path, range(kept + 3))
    features = open_features(path)
    assert features.meta["complete"] and len(features) == kept + 3
    for number in range(kept + 3):
        assert_equal(features.load(f"image_{number}"), record_of(number))


@pytest.mark.parametrize("moment", ["_publish", "rmtree"])
def test_a_writer_killed_while_it_merges_its_segments_is_finished_by_a_rerun(tmp_path, monkeypatch, moment):
    """Before the merged file has its name, and before its segments are deleted."""
    path = tmp_path / "features.h5"

    def die(*args):
        if moment == "rmtree" or args[0].name == "merged.tmp":
            os.kill(os.getpid(), signal.SIGKILL)
        publish(*args)

    publish = feature_hdf5._publish
    with monkeypatch.context() as patch:
        patch.setattr(feature_hdf5 if moment == "_publish" else feature_hdf5.shutil, moment, die)
        child = in_child(write, path, range(5))
        child.join(30)
    assert child.exitcode == -signal.SIGKILL
    features = open_features(path)
    assert not features.meta["complete"] and len(features) == 5
    assert_equal(features.load("image_3"), record_of(3))
    write(path, range(5))
    assert open_features(path).meta["complete"] and len(open_features(path)) == 5


def test_a_group_without_digest_is_written_again(tmp_path):
    path = tmp_path / "features.h5"
    write(path, range(3))
    with h5py.File(path, "r+") as file:
        del file["image_1"].attrs["digest"], file["image_1/boxes"]
    with pytest.raises(DamagedImage, match=r"features\.h5/image_1: .*digest differs"):
        open_features(path).load("image_1")
    write(path, range(3))
    assert_equal(open_features(path).load("image_1"), record_of(1))


# ---- merging ----


@pytest.mark.parametrize("target", SUFFIXES)
def test_shards_become_one_store_of_either_container_and_are_gone(path, target):
    shards = [path.with_stem(f"shard{rank}") for rank in range(3)]
    for rank, shard in enumerate(shards):
        write(shard, range(rank, 8, 3))
    counts = []
    merged = path.with_name(f"merged.{target}")
    merge_features(merged, shards, counts.append)
    assert [file.name for file in path.parent.iterdir()] == [merged.name] and sum(counts) == 8
    features = open_features(merged)
    assert features.meta == {**META, "format": 1, "complete": True} and len(features) == 8
    for number in range(8):
        assert_equal(features.load(f"image_{number}"), record_of(number))


@pytest.mark.parametrize("moment", [3, 7, "first shard", "last shard"])
def test_a_killed_merge_is_finished_by_a_rerun_and_not_complete_before(path, monkeypatch, moment):
    monkeypatch.setattr(feature_lmdb, "COMMIT_EVERY", 2)
    monkeypatch.setattr(feature_hdf5, "SEGMENT", 2)
    shards = [path.with_stem(f"shard{rank}") for rank in range(2)]
    for rank, shard in enumerate(shards):
        write(shard, range(rank, 8, 2))
    counts, remove = [], feature_store._remove

    def die_at(count):
        counts.append(count)
        if sum(counts) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def die_at_shard(shard):
        if shard == shards[{"first shard": 0, "last shard": 1}.get(moment, 0)]:
            os.kill(os.getpid(), signal.SIGKILL)
        remove(shard)

    with monkeypatch.context() as patch:
        patch.setattr(feature_store, "_remove", die_at_shard)
        child = in_child(merge_features, path, shards, die_at)
        child.join(30)
    assert child.exitcode == -signal.SIGKILL
    assert open_features(path).meta["complete"] == isinstance(moment, str)
    merge_features(path, shards)
    assert not any(shard.exists() for shard in shards)
    features = open_features(path)
    assert features.meta["complete"] and len(features) == 8
    assert_equal(features.load("image_7"), record_of(7))
    merge_features(path, shards)  # and once more is no harm


def test_a_merge_without_all_shards_or_with_unfinished_or_other_ones_is_refused(path):
    shards = [path.with_stem(f"shard{rank}") for rank in range(2)]
    write(shards[0], range(2))
    with pytest.raises(UserError, match=r"shard1.* is missing"):
        merge_features(path, shards)
    with suppress(KeyboardInterrupt), write_features(shards[1], META) as writer:
        writer.put("image_5", record_of(5))
        raise KeyboardInterrupt
    with pytest.raises(UserError, match=r"shard1.* is not complete"):
        merge_features(path, shards)
    write(path.with_stem("other"), [9], {"model": "RN101"})
    with pytest.raises(UserError, match=r"RN101.*not.*RN50"):
        merge_features(path, [shards[0], path.with_stem("other")])
    assert not path.exists() and len(open_features(shards[0])) == 2


def test_new_shards_join_a_complete_store_but_none_may_be_missing(stored):
    shards = [stored.with_stem(f"shard{rank}") for rank in range(2)]
    write(shards[0], [5])
    with pytest.raises(UserError, match=r"shard1.* is missing"):
        merge_features(stored, shards)
    write(shards[1], [6])
    merge_features(stored, shards)
    assert len(open_features(stored)) == 7 and open_features(stored).meta["complete"]


# ---- damage ----


def test_a_missing_image_is_named(stored):
    with pytest.raises(DamagedImage, match=rf"{stored.name}/image_9: is not in the store"):
        open_features(stored).load("image_9")


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value[:-1],
        lambda value: value[:60] + bytes([value[60] ^ 1]) + value[61:],
        lambda value: bytes([value[0] ^ 1]) + value[1:],
        lambda value: value[:10],
        lambda value: b"",
    ],
)
def test_a_damaged_lmdb_value_is_named(tmp_path, change):
    path = tmp_path / "features.lmdb"
    write(path, range(2))
    change_value(path, "image_1", change)
    with pytest.raises(DamagedImage, match=r"features\.lmdb/image_1: .*digest differs"):
        open_features(path).load("image_1")
    assert_equal(open_features(path).load("image_0"), record_of(0))


def test_any_damaged_byte_of_hdf5_data_is_noticed(tmp_path):
    path = tmp_path / "features.h5"
    write(path, range(2))
    data = bytearray(path.read_bytes())
    for name in ("features", "boxes", "objects_id"):
        place = data.index(record_of(1)[name].tobytes())
        path.write_bytes(data[: place + 3] + bytes([data[place + 3] ^ 4]) + data[place + 4 :])
        with pytest.raises(DamagedImage, match=r"features\.h5/image_1: .*digest differs"):
            open_features(path).load("image_1")
        assert_equal(open_features(path).load("image_0"), record_of(0))


def test_an_hdf5_store_of_arrays_has_no_global_heap(tmp_path):
    """It has no checksum, and the library reads a zeroed one without end."""
    path = tmp_path / "features.h5"
    with write_features(path, META) as writer:
        writer.put("1", {"grid": np.ones((3, 4), np.float16), "height": 480})
    assert b"GCOL" not in path.read_bytes() and open_features(path).load("1")["height"] == 480


def test_the_record_of_another_image_is_noticed(stored):
    if stored.suffix == ".lmdb":
        with lmdb.open(str(stored), map_size=2**30) as environment, environment.begin(write=True) as transaction:
            transaction.put(b"image_1", transaction.get(b"image_2"))
    else:
        with h5py.File(stored, "r+") as file:
            del file["image_1"]
            file.copy("image_2", "image_1")
    with pytest.raises(DamagedImage, match="digest differs"):
        open_features(stored).load("image_1")


def test_a_store_cut_short_is_refused_before_it_is_read(stored):
    """A map read past the end of its file kills the process with a bus error."""
    file = stored / "data.mdb" if stored.is_dir() else stored
    with file.open("r+b") as opened:
        opened.truncate(opened.seek(0, os.SEEK_END) // 2)
    for use in (lambda: open_features(stored), lambda: write(stored, [7])) * 2:
        with pytest.raises(DataError, match="copy it again"):
            use()


@pytest.mark.parametrize(
    "name", ["none.lmdb", "none.h5", "features.npz", "junk.lmdb", "junk.h5", "other.lmdb", "other.h5"]
)
def test_what_is_no_store_is_refused_by_reader_and_writer(tmp_path, name):
    (tmp_path / "junk.lmdb").mkdir()
    (tmp_path / "junk.lmdb/data.mdb").write_bytes(b"junk" * 5000)
    (tmp_path / "junk.h5").write_bytes(b"junk" * 5000)
    with lmdb.open(str(tmp_path / "other.lmdb")) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"a", b"b")
    h5py.File(tmp_path / "other.h5", "w").close()
    with pytest.raises(UserError, match=name):
        open_features(tmp_path / name)
    if not name.startswith("none"):
        with pytest.raises(UserError, match=name):
            write(tmp_path / name, [0])
    with lmdb.open(str(tmp_path / "other.lmdb")) as environment:
        assert environment.stat()["entries"] == 1


def test_a_store_of_a_later_format_is_refused(tmp_path):
    path = tmp_path / "features.h5"
    write(path, [0])
    with h5py.File(path, "r+") as file:
        file.attrs["clip_vl_features"] = json.dumps({**META, "format": 2, "complete": True})
    with pytest.raises(UserError, match="format 2"):
        open_features(path)


def test_a_store_that_cannot_be_written_is_an_error_that_names_it(path):
    (path.parent / "file").write_text("")
    with pytest.raises(UserError, match=rf"file/{path.name} cannot be written"):
        write(path.parent / "file" / path.name, [0])


# ---- foreign content ----


def legacy_value(content):
    """As msgpack-numpy and lz4 write it."""

    def encode(array):
        return {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}

    return lz4.frame.compress(msgpack.packb(content, default=encode, use_bin_type=True))


def legacy_store(path, **values):
    with lmdb.open(str(path), map_size=2**30) as environment, environment.begin(write=True) as transaction:
        for img_id, value in values.items():
            transaction.put(img_id.encode(), value)
    return path


def test_an_lmdb_of_the_original_tool_is_read(tmp_path):
    scalar = {b"nd": False, b"type": "<f4", b"data": np.float32(0.5).tobytes()}
    record = record_of(3)
    path = legacy_store(tmp_path / "legacy.lmdb", image_3=legacy_value({**record, "conf": scalar}))
    features = open_features(path)
    assert features.meta == {"format": 0, "complete": True}
    assert features.keys() == ["image_3"] and len(features) == 1
    assert_equal(features.load("image_3"), {**record, "conf": 0.5})
    with pytest.raises(UserError, match=r"holds {}, not"):
        write(path, [4])


ARRAY = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2], b"data": bytes(8)}


@pytest.mark.parametrize(
    "content",
    [
        {"x": {**ARRAY, b"type": "|O", b"kind": b"O", b"data": pickle.dumps([1])}},
        {"x": {**ARRAY, b"type": [["a", "<f4"]], b"kind": b"V"}},
        {"x": {**ARRAY, b"type": "<f4,<f4"}},
        {"x": {**ARRAY, b"shape": [3]}},
        {"x": {**ARRAY, b"shape": [-2]}},
        {"x": {**ARRAY, b"shape": [2**60, 2**60, 0]}},
        {"x": {**ARRAY, b"shape": "2"}},
        {"x": {**ARRAY, b"data": "text"}},
        {"x": {"y": 1}},
        {"x": [1]},
        {"x": None},
        {"x": msgpack.ExtType(5, b"code")},
        {"../x": 1},
        [1],
        7,
    ],
)
def test_foreign_values_that_are_no_record_are_damaged_images(tmp_path, content):
    path = legacy_store(tmp_path / "legacy.lmdb", a=legacy_value(content))
    with pytest.raises(DamagedImage, match=r"legacy\.lmdb/a: "):
        open_features(path).load("a")


def test_foreign_frames_that_are_cut_or_claim_too_much_are_damaged_images(tmp_path, monkeypatch):
    monkeypatch.setattr(feature_records, "MAX_RECORD", 10_000)
    whole = legacy_value({"x": np.random.default_rng(0).random(100)})
    bomb = lz4.frame.compress(bytes(20_000))
    silent = lz4.frame.compress(bytes(20_000), store_size=False)
    path = legacy_store(tmp_path / "legacy.lmdb", whole=whole, cut=whole[:-9], bomb=bomb, silent=silent)
    features = open_features(path)
    assert features.load("whole")["x"].shape == (100,)
    for img_id in ("cut", "bomb", "silent"):
        with pytest.raises(DamagedImage):
            features.load(img_id)


def test_hdf5_fields_and_groups_that_lie_in_other_files_are_refused(tmp_path):
    path = tmp_path / "features.h5"
    write(path, range(5))
    (tmp_path / "secret").write_bytes(bytes(64))
    write(tmp_path / "other.h5", [0])
    with h5py.File(path, "r+") as file:
        for number in range(5):
            del file[f"image_{number}/features"]
        file["image_0/features"] = h5py.ExternalLink("other.h5", "/image_0/features")
        file["image_1"].create_dataset("features", (8,), "f4", external=[(str(tmp_path / "secret"), 0, 32)])
        layout = h5py.VirtualLayout((3, 4), "f2")
        layout[:] = h5py.VirtualSource(str(tmp_path / "other.h5"), "image_0/features", (3, 4))
        file["image_2"].create_virtual_dataset("features", layout)
        file["image_3/features"] = h5py.SoftLink("/image_4/boxes")
        del file["image_4"]
        file["image_4"] = h5py.ExternalLink("other.h5", "/image_0")
    for number in range(5):
        with pytest.raises(DamagedImage, match=r"not in the file|not a group"):
            open_features(path).load(f"image_{number}")


def test_hdf5_fields_of_objects_or_of_any_size_are_refused(tmp_path):
    path = tmp_path / "features.h5"
    write(path, range(3))
    with h5py.File(path, "r+") as file:
        file["image_0"].create_dataset("large", (2**31,), "f4", chunks=(1024,))  # takes no space on disk
        file["image_1"].create_dataset("reference", data=file.ref, dtype=h5py.ref_dtype)
        file["image_2"].create_group("group")
    for number in range(3):
        with pytest.raises(DamagedImage, match="has a field"):
            open_features(path).load(f"image_{number}")


def test_names_of_files_given_as_text_work(tmp_path):
    for suffix in SUFFIXES:
        write(str(tmp_path / f"text.{suffix}"), [0])
        assert open_features(str(Path(tmp_path, f"text.{suffix}"))).keys() == ["image_0"]
