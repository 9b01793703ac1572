"""Classification sets as captioned images."""

import os
import pickle
import shutil

import numpy as np
import pytest

from clip_vl.datasets.captions.folders import TEMPLATES, class_names, open_classes, read_class_folders, warn_of_names
from clip_vl.datasets.images.files import EXTENSIONS, readable_extensions, readable_formats
from clip_vl.datasets.storage.cache import writable_root
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


def write(root, texts):
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def make(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


@pytest.mark.parametrize(
    "names, order",
    [
        ([str(n) for n in range(12)], [str(n) for n in range(12)]),
        (["02", "1", "10"], ["1", "02", "10"]),
        (["000", "010", "002"], ["000", "002", "010"]),
        (["10", "9", "background"], ["10", "9", "background"]),  # not all are numbers: as torchvision does
        (["b", "a", "C"], ["C", "a", "b"]),
    ],
)
def test_class_folders_that_are_all_numbers_sort_as_numbers(tmp_path, names, order):
    make(tmp_path, *(f"{name}/a.jpg" for name in reversed(names)))
    assert list(read_class_folders(tmp_path)) == order


def test_names_that_are_given_by_order_are_warned_about_where_text_order_is_not_the_order_of_numbers(tmp_path, capsys):
    classes = make(tmp_path, *(f"class_{n}/a.jpg" for n in (1, 2, 10)), "classnames.txt")
    (tmp_path / "classnames.txt").write_text("one\ntwo\nten\n")
    assert class_names(classes, ["class_1", "class_10", "class_2"]) == ["one", "two", "ten"]
    assert "name 1 is that of 'class_10'" in capsys.readouterr().out
    class_names(classes, ["1", "2", "10"])
    class_names(classes, ["ant", "bee", "cat"])
    assert capsys.readouterr().out == ""


def test_every_image_extension_is_read_and_what_is_not_read_is_counted(tmp_path, capsys):
    known = [f"a/{n}{ext.upper() if n % 2 else ext}" for n, ext in enumerate(EXTENSIONS)]
    make(tmp_path, *known, "a/x.HEIC", "b/deep/y.heic", "b/z.svg", "b/noext", "b/1.jpg", "empty/readme.md", "bare.png")
    make(tmp_path, ".hidden/1.jpg", "a/.DS_Store", "a/._0.jpg", "__MACOSX/a/1.jpg", "a/.ipynb_checkpoints/1.jpg")
    found, said = read_class_folders(tmp_path), capsys.readouterr().out
    assert found == {"a": sorted(name[2:] for name in known), "b": ["1.jpg"], "empty": []}
    assert f"5 of {len(known) + 6} files are left out" in said
    assert "2 .heic, 1 .md, 1 .svg, 1 without an extension" in said
    assert "1 of 3 classes have no image: 'empty'" in said
    assert "images are left out (in no class folder: 1, first bare.png)" in said


def test_names_of_files_are_printed_without_control_characters(tmp_path, capsys):
    make(tmp_path, "a/x.\x1b[31m", "\x1b]0;b.png", *(f"a/1.{n}" for n in range(9)))
    (tmp_path / os.fsdecode(b"caf\xe9.png")).write_bytes(b"")
    read_class_folders(tmp_path)
    said = capsys.readouterr().out
    said.encode()
    assert "\x1b" not in said and "\\x1b]0;b.png" in said and "1 .6, ..." in said


def test_what_pillow_cannot_decode_here_is_counted_as_not_read(tmp_path, capsys, monkeypatch):
    from PIL import features

    make(tmp_path, "a/1.avif", "a/2.jpg")
    monkeypatch.setattr(features, "check", lambda name: name != "avif")
    readable_formats.cache_clear()
    readable_extensions.cache_clear()
    assert read_class_folders(tmp_path) == {"a": ["2.jpg"]} and "1 .avif" in capsys.readouterr().out
    readable_formats.cache_clear()
    readable_extensions.cache_clear()


def test_links_to_folders_are_followed_and_end(tmp_path):
    root = make(tmp_path / "set", "a/1.jpg").parent
    make(tmp_path / "elsewhere", "2.jpg")
    (root / "set" / "a" / "more").symlink_to(tmp_path / "elsewhere")
    (root / "set" / "a" / "loop").symlink_to(root / "set" / "a")
    (root / "set" / "b").symlink_to(tmp_path / "elsewhere")
    assert read_class_folders(root / "set") == {"a": ["1.jpg", "more/2.jpg"], "b": ["2.jpg"]}


def test_folders_of_splits_are_no_classes(tmp_path):
    make(tmp_path, "train/ant/1.jpg", "test/ant/1.jpg")
    with pytest.raises(UserError, match=r"a folder for each split \(test, train\) and none for classes"):
        read_class_folders(tmp_path)
    make(tmp_path, "car/1.jpg")
    assert list(read_class_folders(tmp_path)) == ["car", "test", "train"]


def test_names_that_are_no_words_are_warned_about(capsys):
    warn_of_names(["n01440764", "n01443537", "tench", "7", "3.5"])
    said = capsys.readouterr().out
    assert "2 of 5 class names in the prompts are WordNet ids, such as 'n01440764'" in said
    assert "2 of 5 class names in the prompts are bare numbers, such as '7'" in said
    warn_of_names(["tench", "7 - seven", "four"])
    assert capsys.readouterr().out == ""


def test_pairs_in_numbered_folders_are_no_classes_and_texts_beside_images_of_classes_are_said(tmp_path, capsys):
    write(tmp_path / "two", {"ant/1.jpg": "", "ant/1.txt": "an ant", "bee/1.jpg": "", "bee/2.jpg": ""})
    assert read_class_folders(tmp_path / "two") == {"ant": ["1.jpg"], "bee": ["1.jpg", "2.jpg"]}
    assert "1 of 3 images have a text beside them, which is not used" in capsys.readouterr().out
    write(tmp_path / "two", {"00000/1.jpg": "", "00000/1.txt": "an ant", "00001/2.jpg": "", "00001/2.txt": "a bee"})
    for name in ("ant", "bee"):
        shutil.rmtree(tmp_path / "two" / name)
    with pytest.raises(UserError, match="2 images with captions beside them in numbered folders: pairs, not classes"):
        read_class_folders(tmp_path / "two")


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
