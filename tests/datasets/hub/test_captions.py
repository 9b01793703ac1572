"""Hugging Face data sets on disk, against what the library itself reads back."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from clip_vl.datasets.captions.sources import open_sources
from clip_vl.datasets.hub.captions import open_hub
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.storage.cache import writable_root
from clip_vl.engine.errors import DataError, UserError
from clip_vl.flags.captions import SourceFlags

datasets = pytest.importorskip("datasets")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


def jpeg(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), value, dtype=np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def table(captions, column="caption", **more):
    images = [{"bytes": jpeg(i), "path": None} for i in range(len(captions))]
    features = {"image": datasets.Image()}
    return datasets.Dataset.from_dict({"image": images, column: captions, **more}).cast_column(
        "image", features["image"]
    )


def opened(folder, split=None, root=None, **settings):
    return open_hub(folder, split, SourceFlags(**settings), root or folder.parent / "cache")


def test_what_was_saved_comes_back_undecoded(tmp_path):
    table(["one", "two", "three"], label=[0, 4, -1]).save_to_disk(tmp_path / "set")
    source = pickle.loads(pickle.dumps(opened(tmp_path / "set")))
    assert [source.read(row) for row in range(3)] == [jpeg(0), jpeg(1), jpeg(2)]
    assert [source.captions(row) for row in range(3)] == [["one"], ["two"], ["three"]]
    assert [source.label(row) for row in range(3)] == [0, 4, -1] and source.num_classes == 5
    assert source.name(1).endswith("set[1]")


def test_lists_of_captions_are_numbered_through(tmp_path):
    captions = [["a", "b"], ["c"], ["d", "e", "f"]]
    table(captions, "sentences").save_to_disk(tmp_path / "set")
    source = opened(tmp_path / "set")
    assert [source.captions(row) for row in range(3)] == captions
    assert [source.text(number) for number in range(source.num_texts)] == list("abcdef")


def test_blank_captions_are_left_out_and_counted(tmp_path, capsys):
    lists = [["a", " ", "b"], [], ["", "c"], ["d"], ["\t"]]
    table(lists, "sentences", label=[0, 1, 2, 3, 4]).save_to_disk(tmp_path / "lists")
    table(["one", " ", "two", None], label=[5, 6, 7, 8]).save_to_disk(tmp_path / "texts")
    source = pickle.loads(pickle.dumps(opened(tmp_path / "lists")))
    assert [source.captions(row) for row in range(len(source))] == [["a", "b"], ["c"], ["d"]]
    assert [source.label(row) for row in range(3)] == [0, 2, 3] and source.read(2) == jpeg(3)
    assert "4 of 8 captions are left out (the caption is blank: 4, first row 0)" in capsys.readouterr().out
    source = opened(tmp_path / "texts")
    assert [(source.captions(row), source.label(row)) for row in range(len(source))] == [(["one"], 5), (["two"], 7)]
    with pytest.raises(DataError, match=r"2 of 4 captions are left out .*share of 0\.4 may be"):
        opened(tmp_path / "texts", max_left_out=0.4)


def test_splits_and_named_columns(tmp_path):
    both = {"train": table(["t"], "words"), "test": table(["x", "y"], "words")}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "set")
    settings = SourceFlags(datasets_dir=str(tmp_path), csv_caption_key="words")
    assert open_sources(f"{tmp_path}/set", settings).captions(0) == ["t"]
    assert len(open_sources("set@test", settings)) == 2
    with pytest.raises(UserError, match=r"has no split 'val'; it has train, test"):
        open_sources("set@val", settings)
    with pytest.raises(
        UserError, match=r"has no column of captions \(--csv_caption_key\); its columns are image, words"
    ):
        open_sources("set", SourceFlags(datasets_dir=str(tmp_path)))


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_folders_of_parquet_and_arrow_files(tmp_path, form):
    folder = tmp_path / "set"
    folder.mkdir()
    for number, captions in enumerate((["one", "two"], ["three"])):
        part = table(captions)
        if form == "parquet":
            part.to_parquet(folder / f"{number}.parquet")
        else:
            part.save_to_disk(tmp_path / "saved")
            (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(folder / f"{number}.arrow")
    source = opened(folder)
    assert [source.captions(row)[0] for row in range(len(source))] == ["one", "two", "three"]
    assert source.read(2) == jpeg(0)


def test_paths_in_rows_stay_below_the_folder(tmp_path):
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    paths = ["../secret.jpg", str(tmp_path / "secret.jpg"), "inside.jpg", "https://example.org/a.jpg"]
    data = datasets.Dataset.from_dict(
        {"image": [{"bytes": None, "path": path} for path in paths], "caption": list("abcd")}
    )
    data.save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "inside.jpg").write_bytes(b"inside")
    source = opened(tmp_path / "set")
    assert source.read(2) == b"inside"
    datasets.Dataset.from_dict({"image": ["inside.jpg"], "caption": ["a"]}).save_to_disk(tmp_path / "texts")
    (tmp_path / "texts" / "inside.jpg").write_bytes(b"named by text")
    assert opened(tmp_path / "texts").read(0) == b"named by text"
    for row, sentence in ((0, "leaves the folder"), (1, "is not below"), (3, "remote address")):
        with pytest.raises(DamagedImage, match=sentence):
            source.read(row)


def test_a_damaged_folder_is_a_sentence(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "data.arrow").write_bytes(b"no arrow")
    with pytest.raises(DataError, match=r"set cannot be read as a data set"):
        opened(folder)


def test_a_column_of_splits_is_obeyed(tmp_path):
    """Published Flickr30k has all splits in one table: the test score must not be that of the training images."""
    captions, splits = [["a", "b"], ["c"], ["d", "e", "f"], ["g"]], ["test", "train", "test", "train"]
    table(captions, split=splits).save_to_disk(tmp_path / "set")
    test, train = opened(tmp_path / "set", "test"), opened(tmp_path / "set")
    assert [test.captions(row) for row in range(len(test))] == [["a", "b"], ["d", "e", "f"]]
    assert [test.text(number) for number in range(test.num_texts)] == list("abdef")
    assert test.read(1) == jpeg(2) and test.digest != train.digest
    assert [train.captions(row) for row in range(len(train))] == [["c"], ["g"]]
    with pytest.raises(UserError, match="has no split 'val'; it has test, train"):
        opened(tmp_path / "set", "val")


def test_files_named_by_their_split_are_not_mixed(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split, captions in (("test", ["x", "y"]), ("train", ["t"])):
        table(captions).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    assert [len(opened(folder, split)) for split in (None, "test")] == [1, 2]
    (folder / "train-00000-of-00001.parquet").unlink()
    assert len(opened(folder)) == len(opened(folder, "test")) == 2  # the only one
    with pytest.raises(UserError, match="set@val: nothing in it names the splits of its rows"):
        opened(folder, "val")


def test_a_split_that_nothing_tells_apart_is_refused(tmp_path):
    table(["one"]).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match="set@test: nothing in it names the splits of its rows; leave out @test"):
        opened(tmp_path / "set", "test")


def test_addresses_stand_for_what_was_downloaded_to_images_dir(tmp_path):
    """The published table of COCO names its images by `url`."""
    address = "http://images.cocodataset.org/val2014/COCO_val2014_000000000001.jpg"
    datasets.Dataset.from_dict({"url": [address], "sentences": [["a", "b"]]}).save_to_disk(tmp_path / "set")
    (tmp_path / "images").mkdir()
    (tmp_path / "images/COCO_val2014_000000000001.jpg").write_bytes(b"there")
    assert opened(tmp_path / "set", images_dir=str(tmp_path / "images")).read(0) == b"there"
    with pytest.raises(DamagedImage, match="remote address"):
        opened(tmp_path / "set").read(0)
