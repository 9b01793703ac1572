"""Hugging Face data sets on disk, against what the library itself reads back."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from clip_vl.datasets.cache import writable_root
from clip_vl.datasets.captions import open_sources
from clip_vl.datasets.hub_folder import open_hub
from clip_vl.datasets.images import DamagedImage
from clip_vl.datasets.source_flags import SourceFlags
from clip_vl.engine.errors import DataError, UserError

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
