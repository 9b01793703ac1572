"""Rows of Hugging Face data sets, read without the library, against what the library itself wrote."""

import io
import pickle

import numpy as np
import pytest
from PIL import Image

from clip_vl.datasets.hub.rows import HubRows, RowImage, files_of
from clip_vl.datasets.probes.winoground import read_winoground
from clip_vl.engine.errors import DataError, UserError

datasets = pytest.importorskip("datasets")


def png(value):
    buffer = io.BytesIO()
    Image.fromarray(np.full((6, 5, 4), value, dtype=np.uint8)).save(buffer, "PNG")  # RGBA, as some of Winoground's are
    return buffer.getvalue()


def table(count=3):
    images = {f"image_{k}": [{"bytes": png(10 * n + k), "path": f"ex_{n}_img_{k}.png"} for n in range(count)]
              for k in (0, 1)}  # fmt: skip
    texts = {"id": list(range(count)), "caption_0": ["a cup on a book"] * count,
             "caption_1": ["a book on a cup"] * count, "tag": ["Noun"] * count, "secondary_tag": ["", "Series", ""],
             "num_main_preds": [1, 2, 1], "collapsed_tag": ["Object"] * count}  # fmt: skip
    data = datasets.Dataset.from_dict(images | texts)
    return data.cast_column("image_0", datasets.Image()).cast_column("image_1", datasets.Image())


def saved(folder, form):
    if form == "parquet":
        folder.mkdir()
        table().to_parquet(folder / "test-00000-of-00001.parquet", batch_size=2)
    elif form == "splits":
        datasets.DatasetDict({"test": table(), "other": table().select([0])}).save_to_disk(folder)
    else:
        table().save_to_disk(folder, num_shards=2)
    return folder


@pytest.mark.parametrize("form", ["parquet", "splits", "saved"])
def test_winoground_as_the_hub_has_it(tmp_path, form):
    folder = saved(tmp_path / "set", form)
    before = sorted(folder.rglob("*"))
    probe = read_winoground(folder)
    assert [item.id for item in probe.items] == ["0", "1", "2"]
    assert probe.items[1].groups == ("all", "collapsed_tag Object", "secondary_tag Series", "num_main_preds 2")
    assert probe.items[0].captions == ("a cup on a book", "a book on a cup")
    assert probe.defects["empty secondary_tag"] == 2 and len(probe.files) == (2 if form == "saved" else 1)
    pictures = [[pickle.loads(pickle.dumps(probe.inside[crop.name])).read_bytes() for crop in item.images]
                for item in probe.items]  # fmt: skip
    assert pictures == [[png(10 * n + k) for k in (0, 1)] for n in range(3)]
    assert sorted(folder.rglob("*")) == before  # nothing is written


def test_a_file_that_a_row_names_stays_below_the_folder(tmp_path):
    (tmp_path / "secret.png").write_bytes(b"secret")
    rows = {"image": [{"bytes": None, "path": "../secret.png"}, {"bytes": None, "path": "in.png"}], "n": [1, 2]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "set")
    (tmp_path / "set/in.png").write_bytes(b"inside")
    assert RowImage(str(tmp_path / "set"), 1, "image").read_bytes() == b"inside"
    for row, column, sentence in ((0, "image", "leaves the folder"), (0, "n", "is no image"), (0, "none", "none")):
        with pytest.raises(OSError, match=sentence):
            RowImage(str(tmp_path / "set"), row, column).read_bytes()


def test_what_is_wrong_with_a_folder_is_said(tmp_path):
    assert files_of(tmp_path) == []
    with pytest.raises(UserError, match="has no parquet or arrow files"):
        HubRows(tmp_path)
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    with pytest.raises(DataError, match="cannot be read as a data set"):
        read_winoground(tmp_path)
    datasets.Dataset.from_dict({"id": [1], "caption_0": ["a"]}).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column .*; the columns are id, caption_0"):
        read_winoground(tmp_path)
    (tmp_path / "state.json").write_text('{"_data_files": [{"filename": "../x.arrow"}]}')
    with pytest.raises(DataError, match="leaves the folder"):
        files_of(tmp_path)
