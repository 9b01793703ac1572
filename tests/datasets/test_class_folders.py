"""Classification sets as captioned images."""

import pickle

import numpy as np
import pytest

from clip_vl.datasets.cache import writable_root
from clip_vl.datasets.class_folders import TEMPLATES, open_classes
from clip_vl.engine.errors import DataError, UserError


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


@pytest.fixture
def folder(tmp_path):
    for name in ("fire_truck/b.jpg", "fire_truck/a.PNG", "ant/deep/c.jpeg", "ant/notes.md", ".hidden/x.jpg"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path / "set"


def test_folders_are_classes_and_their_names_fill_the_templates(folder, tmp_path):
    source = open_classes(folder, tmp_path / "cache")
    assert [source.read(row).decode() for row in range(len(source))] == [
        "ant/deep/c.jpeg",
        "fire_truck/a.PNG",
        "fire_truck/b.jpg",
    ]
    assert [source.label(row) for row in range(3)] == [0, 1, 1] and source.num_classes == 2
    assert source.captions(2) == [template.replace("{}", "fire truck") for template in TEMPLATES]
    assert source.text_number(1, 3) == source.text_number(2, 3)  # shared by the images of a class
    assert source.num_texts == 2 * len(TEMPLATES)
    assert {source.caption(0, np.random.default_rng(seed)) for seed in range(100)} == set(source.captions(0))


@pytest.mark.parametrize("place", ["set", "."])
def test_names_and_templates_may_be_given(folder, tmp_path, place):
    (tmp_path / place / "classnames.txt").write_text("fire_truck\tred engine {0.real}\nant\tbusy ant\nother\tx\n")
    (tmp_path / place / "templates.txt").write_text("one {}\n{} and {}\n")
    source = pickle.loads(pickle.dumps(open_classes(folder, tmp_path / "cache")))
    assert source.captions(0) == ["one busy ant", "busy ant and busy ant"]
    assert source.captions(1)[0] == "one red engine {0.real}"  # text, not a format
    (tmp_path / place / "classnames.txt").write_text("emmet\nlorry\n")
    renamed = open_classes(folder, tmp_path / "cache")
    assert renamed.captions(2)[0] == "one lorry"
    assert renamed.digest != source.digest and renamed.folder == source.folder


def test_what_does_not_fit_is_said(folder, tmp_path):
    (folder / "classnames.txt").write_text("one\n")
    with pytest.raises(DataError, match=r"classnames\.txt has 1 names for the 2 subfolders"):
        open_classes(folder, tmp_path / "cache")
    (folder / "classnames.txt").write_text("ant\tan ant\n")
    with pytest.raises(DataError, match="names no class for the folder 'fire_truck'"):
        open_classes(folder, tmp_path / "cache")
    (folder / "templates.txt").write_text("no place\n")
    (folder / "classnames.txt").unlink()
    with pytest.raises(DataError, match=r"the template 'no place' has no \{\}"):
        open_classes(folder, tmp_path / "cache")
    with pytest.raises(UserError, match="has no subfolders"):
        open_classes(folder / "fire_truck", tmp_path / "cache")
