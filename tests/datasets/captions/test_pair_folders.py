"""Images with captions beside them: which folders are pairs, their captions, and what is said of the rest."""

import json
import os
import pickle

import pytest

from clip_vl.datasets.captions.folders import ClassTable
from clip_vl.datasets.captions.sources import open_sources
from clip_vl.datasets.storage.cache import writable_root
from clip_vl.engine.errors import DataError, UserError
from clip_vl.flags.captions import SourceFlags


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


def make(root, files):
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def opened(root, spec="set"):
    """The source of the entry `spec`."""
    return open_sources(f"{root}/{spec}", SourceFlags(datasets_dir=str(root))).sources[0]


def pairs(root):
    source = opened(root)
    return {os.path.relpath(source.name(row), root / "set"): source.captions(row) for row in range(len(source))}


def test_img2datasets_files_are_pairs_beside_its_lists(tmp_path, capsys):
    files = {"00000_stats.json": '{"count": 2}', "00000.parquet": "not a data set of images"}
    for shard, number in ((0, 0), (0, 1), (1, 10)):
        stem = f"{shard:05d}/{number:09d}"
        about = {"caption": f"caption {number}", "url": "https://x.y/z", "key": f"{number:09d}", "width": 3}
        files |= {f"{stem}.jpg": stem, f"{stem}.txt": f"caption {number}", f"{stem}.json": json.dumps(about)}
    make(tmp_path / "set", files)
    assert pairs(tmp_path) == {
        "00000/000000000.jpg": ["caption 0"],
        "00000/000000001.jpg": ["caption 1"],
        "00001/000000010.jpg": ["caption 10"],
    }
    said = capsys.readouterr().out
    assert "3 images with captions beside them are read as pairs, not as classes" in said and "warning" not in said
    source = pickle.loads(pickle.dumps(opened(tmp_path)))
    assert source.read(1).decode() == "00000/000000001" and source.label(1) == -1 and source.num_texts == 3


def test_sidecars_of_all_forms(tmp_path, capsys):
    make(tmp_path / "set", {
        "a.JPG": "", "a.TXT": "\ufeff upper case \n", "b.v2.tif": "", "b.v2.txt": "a key with dots",
        "cat/c.png": "", "cat/c.json": '{"caption": ["one", "two"]}', "cat/d.jpg": "",
        "cat/d.txt": "words\u2028in a line",
        "e.webp": "", "e.txt": " ", "e.json": '{"caption": "from json"}', "f.jpg": "", "f.json": '{"caption": null}',
        "g.jpg": "", "h.heic": "", "h.txt": "not read", ".hidden/i.jpg": "", "._a.JPG": "", "__MACOSX/a.jpg": "",
    })  # fmt: skip
    assert pairs(tmp_path) == {
        "a.JPG": ["upper case"],
        "b.v2.tif": ["a key with dots"],
        "cat/c.png": ["one", "two"],
        "cat/d.jpg": ["words\u2028in a line"],
        "e.webp": ["from json"],
    }
    said = capsys.readouterr().out
    assert "2 of 8 captions are left out (the image has no caption: 2, first " in said and "1 .heic" in said
    pairs(tmp_path)
    assert capsys.readouterr().out == said  # from the cache as well


def test_a_changed_caption_is_noticed(tmp_path):
    make(tmp_path / "set", {"a.jpg": "", "a.txt": "one"})
    first = opened(tmp_path)
    make(tmp_path / "set", {"a.txt": "three"})
    assert opened(tmp_path).captions(0) == ["three"] and opened(tmp_path).digest != first.digest


@pytest.mark.parametrize(
    "files",
    [
        {"cat/1.txt": "a cat"},  # one of four
        {f"{name}.txt": "0 0.5 0.5 0.25 0.1" for name in ("cat/1", "cat/2", "dog/1", "dog/2")},  # boxes
        {f"{name}.json": '{"width": 3}' for name in ("cat/1", "cat/2", "dog/1", "dog/2")},
        {"cat/notes.txt": "words", "readme.txt": "words"},
    ],
)
def test_class_folders_stay_classes(tmp_path, files):
    make(tmp_path / "set", dict.fromkeys(("cat/1.jpg", "cat/2.jpg", "dog/1.jpg", "dog/2.jpg"), "") | files)
    source = opened(tmp_path)
    assert isinstance(source, ClassTable) and source.num_classes == 2 and len(source) == 4


def test_a_folder_of_shards_is_its_shards(tmp_path):
    import tarfile

    make(tmp_path / "new", {"1.jpg": "x", "1.txt": "one"})
    (tmp_path / "set").mkdir()
    make(tmp_path / "set", {"00000.parquet": "x", "00000_stats.json": "{}"})
    for shard in range(2):
        with tarfile.open(tmp_path / "set" / f"{shard:05d}.tar", "w") as tar:
            for name in ("1.jpg", "1.txt"):
                tar.add(tmp_path / "new" / name, name)
    source = opened(tmp_path)
    assert [source.captions(row) for row in range(len(source))] == [["one"], ["one"]]


def test_what_cannot_be_read_is_named(tmp_path):
    make(tmp_path / "set", {"a.jpg": "", "a.txt": "one", "b.jpg": "", "b.json": "{"})
    with pytest.raises(DataError, match=r"b\.json is not valid JSON"):
        opened(tmp_path)
    (tmp_path / "set" / "b.json").unlink()
    (tmp_path / "set" / "b.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"b\.txt is not UTF-8 text"):
        opened(tmp_path)
    with pytest.raises(UserError, match="a folder of pairs has no splits"):
        (tmp_path / "set" / "b.txt").unlink()
        opened(tmp_path, "set@train")
