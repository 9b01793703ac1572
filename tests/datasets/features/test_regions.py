"""Region features in the forms that others write: every number arrives, and what is wrong is named with its place."""

import base64
import csv
from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from clip_vl.datasets.features.regions import convert_regions, normalised_boxes, open_regions, read_lxmert_tsv
from clip_vl.datasets.features.store import write_features
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.lxmert.batches import open_images, pad_regions
from clip_vl.engine.errors import DataError, UserError

FIELDS = ["img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
          "features"]  # fmt: skip


def regions_of(number, K=3, F=5):
    rng = np.random.default_rng(number)
    corner = rng.uniform(0, 50, (K, 2))
    return {
        "features": rng.standard_normal((K, F)).astype(np.float32),
        "boxes": np.hstack([corner, corner + rng.uniform(1, 40, (K, 2))]).astype(np.float32),
        "objects_id": rng.integers(0, 1600, K),
        "objects_conf": rng.random(K).astype(np.float32),
        "attrs_id": rng.integers(0, 400, K),
        "attrs_conf": rng.random(K).astype(np.float32),
        "img_h": 100,
        "img_w": 120 + number,
    }


def write_tsv(path, records):
    """As the published extraction does: csv's tab-separated rows, arrays in base64."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, delimiter="\t", fieldnames=FIELDS)
        for img_id, record in records.items():
            row = {n: base64.b64encode(v).decode() if isinstance(v, np.ndarray) else v for n, v in record.items()}
            writer.writerow(row | {"img_id": img_id, "num_boxes": len(record["boxes"])})
    return path


def write_vl_t5(path, records):
    names = {"objects_id": "obj_id", "objects_conf": "obj_conf", "attrs_id": "attr_id", "attrs_conf": "attr_conf"}
    with h5py.File(path, "w") as file:
        for img_id, record in records.items():
            for name, value in record.items():
                file[f"{img_id}/{names.get(name, name)}"] = value
    return path


def write_store(path, records):
    with write_features(path, {"kind": "regions", "width": 5}) as writer:
        for img_id, record in records.items():
            writer.put(img_id, record)
    return path


RECORDS = {f"image_{number}": regions_of(number, K=2 + number) for number in range(3)}
FORMS = {"tsv": write_tsv, "h5": write_vl_t5, "lmdb": write_store}


def same(found, record):
    return found.keys() == record.keys() and all(np.array_equal(found[name], record[name]) for name in record)


@pytest.mark.parametrize("suffix", FORMS)
def test_every_number_of_every_form_arrives(tmp_path, suffix):
    source = open_regions(FORMS[suffix](tmp_path / f"regions.{suffix}", RECORDS))
    assert source.keys() == sorted(RECORDS) and len(source) == 3
    assert all(same(source.load(img_id), RECORDS[img_id]) for img_id in reversed(RECORDS))
    with pytest.raises(DamagedImage, match=f"regions.{suffix}/elsewhere: is not in"):
        source.load("elsewhere")


@pytest.mark.parametrize("suffix", FORMS)
def test_conversion_keeps_everything_in_half_the_bytes_and_does_nothing_twice(tmp_path, suffix):
    source = FORMS[suffix](tmp_path / f"regions.{suffix}", RECORDS)
    seen = []
    assert convert_regions(source, tmp_path / "out.lmdb", seen.append) == 3 and seen == [1, 1, 1]
    store = open_regions(tmp_path / "out.lmdb")
    assert store.meta["complete"] and store.meta["width"] == 5
    for img_id, record in RECORDS.items():
        assert same(store.load(img_id), record | {"features": record["features"].astype(np.float16)})
    assert convert_regions(source, tmp_path / "out.lmdb") == 0


def test_a_second_file_joins_the_first_and_one_of_another_width_does_not(programs, tmp_path):
    one, two = (write_tsv(tmp_path / f"{n}.tsv", {f"image_{n}": regions_of(n)}) for n in (1, 2))
    wide = write_tsv(tmp_path / "wide.tsv", {"image_3": regions_of(3, F=6)})
    for source in (one, two):
        assert "of 1 images added" in programs.run("convert", source, tmp_path / "all.h5").stdout
    assert open_regions(tmp_path / "all.h5").keys() == ["image_1", "image_2"]
    with pytest.raises(UserError, match=r"holds .*'width': 5.*not .*'width': 6"):
        programs.run("convert", wide, tmp_path / "all.h5")


def damaged(column, change):
    """A TSV line with one column changed, as bytes."""

    def write(path):
        lines = write_tsv(path, RECORDS).read_bytes().splitlines(keepends=True)
        columns = lines[1].rstrip(b"\r\n").split(b"\t")
        columns[FIELDS.index(column)] = change(columns[FIELDS.index(column)])
        path.write_bytes(lines[0] + b"\t".join(columns) + b"\r\n" + lines[2])

    return write


def nan_boxes(_):
    return base64.b64encode(np.full((3, 4), np.nan, np.float32))


@pytest.mark.parametrize(
    "write, sentence",
    [
        (damaged("features", lambda text: text[:-8]), r"has \d+ bytes in column features"),
        (damaged("boxes", lambda text: b"*" + text[1:]), "has no base64 in column boxes"),
        (damaged("num_boxes", lambda text: b"1e9"), "has num_boxes b'1e9'; a number is expected"),
        (damaged("num_boxes", lambda text: b"4"), r"has \d+ bytes in column features"),
        (damaged("img_h", lambda text: b"0"), "has img_h 0; it is a number of pixels"),
        (damaged("boxes", nan_boxes), "has boxes that are not finite"),
        (damaged("img_w", lambda text: text + b"\t1"), "has 11 columns, not 10"),
        (damaged("img_id", lambda text: b"image_0"), "is a second line for image 'image_0'"),
    ],
)
def test_a_wrong_line_is_named_with_its_number(tmp_path, write, sentence):
    write(tmp_path / "bad.tsv")
    with pytest.raises(DataError, match=rf"bad\.tsv:2 {sentence}"):
        list(read_lxmert_tsv(tmp_path / "bad.tsv"))
    with pytest.raises(DataError):  # and a conversion stops there, with what it has
        convert_regions(tmp_path / "bad.tsv", tmp_path / "out.lmdb")
    kept = open_regions(tmp_path / "out.lmdb")
    assert kept.keys() == ["image_0"] and not kept.meta["complete"]


def test_a_file_cut_short_is_noticed_when_its_last_line_is_read(tmp_path):
    path = write_tsv(tmp_path / "cut.tsv", RECORDS)
    path.write_bytes(path.read_bytes()[:-20])
    source = open_regions(path)
    assert same(source.load("image_1"), RECORDS["image_1"])
    with pytest.raises(DamagedImage, match=r"cut.tsv/image_2: has .* column features"):
        source.load("image_2")


def test_boxes_are_parts_of_the_picture_and_may_not_leave_it():
    record = regions_of(0) | {"boxes": np.float32([[0, 0, 120, 100], [30, 25, 60, 50], [12, 10, 24, 20]])}
    assert np.allclose(normalised_boxes(record), [[0, 0, 1, 1], [0.25, 0.25, 0.5, 0.5], [0.1, 0.1, 0.2, 0.2]])
    record["boxes"][1, 2] = 121
    with pytest.raises(DamagedImage, match="leaves its image of 120x100 pixels"):
        normalised_boxes(record, "image_0")


def arguments(path, **more):
    return SimpleNamespace(features=str(path), input_raw_images=False, region_dim=5, data_root="", **more)


def test_regions_of_images_with_fewer_are_padded_and_not_visible(tmp_path):
    source = open_images(arguments(write_store(tmp_path / "r.lmdb", RECORDS)), region_labels={"obj": 1600})
    batch = pad_regions([source.load("image_0", 0, 0), source.blank(0, 0, None), source.load("image_1", 0, 0)], (), ())
    assert batch["region_visible"].tolist() == [[True, True, False], [False] * 3, [True] * 3]
    assert batch["region_features"].shape == (3, 3, 5) and not batch["region_features"][1].any()
    assert batch["region_obj"][2].tolist() == RECORDS["image_1"]["objects_id"].tolist()
    assert "region_attr" not in batch
    nothing = pad_regions([source.blank(0, 0, None)] * 2, (), ())
    assert nothing["region_visible"].tolist() == [[False], [False]]


@pytest.mark.parametrize(
    "change, sentence",
    [
        ({"objects_id": np.array([1, 1600])}, "image_0: has objects of class 1 to 1600 of 1600"),
        ({"objects_id": np.array([-1, 3])}, "image_0: has objects of class -1 to 3 of 1600"),
        ({"attrs_conf": None}, "image_0: has no attrs detected, which --visualLosses attr asks for"),
    ],
)
def test_labels_that_a_loss_cannot_use_are_named_where_it_asks_for_them(tmp_path, change, sentence):
    record = {name: value for name, value in (regions_of(0, K=2) | change).items() if value is not None}
    path = write_store(tmp_path / "r.lmdb", {"image_0": record})
    asking = open_images(arguments(path), region_labels={"obj": 1600, "attr": 400})
    with pytest.raises(DamagedImage, match=sentence):
        asking.load("image_0", 0, 0)
    assert open_images(arguments(path)).load("image_0", 0, 0).keys() == {"features", "boxes"}


def test_a_store_of_another_width_or_kind_is_refused_with_the_flag(tmp_path):
    path = write_store(tmp_path / "r.lmdb", RECORDS)
    with pytest.raises(UserError, match="pass --region_dim 5"):
        open_images(SimpleNamespace(**vars(arguments(path)) | {"region_dim": 2048}))
    with write_features(tmp_path / "g.lmdb", {"kind": "grid"}) as writer:
        writer.put("image_0", {"grid": np.zeros((1, 2, 2), np.float16), "height": 1, "width": 1})
    with pytest.raises(UserError, match="of kind grid; pass --input_raw_images"):
        open_images(arguments(tmp_path / "g.lmdb"))
