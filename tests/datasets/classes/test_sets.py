"""Readers of classification sets on small made files, and what they refuse."""

import json
import pickle
import struct
import zipfile

import numpy as np
import pytest
from PIL import Image

from clip_vl.datasets.classes import elevater as classes_elevater
from clip_vl.datasets.classes.class_set import held_out
from clip_vl.datasets.classes.names import benchmark_key, metric_of, named, read_list
from clip_vl.datasets.classes.prompts import Prompts, read_templates
from clip_vl.datasets.classes.sets import ClassSource, open_class_set, open_training, open_validation
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.engine.errors import DataError, UserError


def settings(dataset, tmp_path, **changes):
    return ClassSource(str(dataset), str(tmp_path), **changes)


def png(path, level=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), level, dtype=np.uint8)).save(path, "PNG")
    return path.read_bytes()


@pytest.fixture
def folder(tmp_path):
    for split, count in (("train", 3), ("test", 2)):
        for label, name in enumerate(("ant", "fire_truck")):
            for number in range(count):
                png(tmp_path / "set" / split / name / f"{number}.png", 10 * label + number)
    return tmp_path / "set"


def test_a_folder_of_class_folders_in_split_folders(folder, tmp_path):
    args = settings(folder, tmp_path)
    found = open_class_set(args, "test")
    assert found.ids == ["ant/0.png", "ant/1.png", "fire_truck/0.png", "fire_truck/1.png"]
    assert found.labels.tolist() == [0, 0, 1, 1] and found.class_names == ["ant", "fire truck"]
    assert found.image(3).shape == (3, 4, 5) and int(pickle.loads(pickle.dumps(found)).image(3)[0, 0, 0]) == 11
    train, valid = open_training(args, "train", found), open_validation(args, None, {"test": found})
    assert len(train) == 6 and valid is None
    png(folder / "test" / "ant" / "1.png", 99)
    assert open_class_set(args, "test").pixels_digest != found.pixels_digest  # changed pictures get new features
    with pytest.raises(UserError, match=r"no folder 'val' for the split; it has test, train"):
        open_class_set(args, "val")


def test_splits_with_other_classes_or_the_same_images_are_refused(folder, tmp_path):
    args = settings(folder, tmp_path)
    test = open_class_set(args, "test")
    with pytest.raises(UserError, match="are the same images"):
        open_training(settings(folder, tmp_path), "test", test)
    (folder / "train" / "bee").mkdir()
    with pytest.raises(DataError, match="do not have the same classes: 'bee'"):
        open_training(args, "train", test)


def test_a_table_names_or_numbers_its_classes(folder, tmp_path):
    rows = ["filepath,label,split", "train/ant/0.png,b,train", "test/ant/0.png,a,test", "test/ant/1.png,c,test"]
    (folder / "t.csv").write_text("\n".join(rows))
    found = open_class_set(settings(folder / "t.csv", tmp_path), "test")
    assert found.class_names == ["a", "b", "c"] and found.labels.tolist() == [0, 2]  # of the whole table, not the split
    (tmp_path / "names.txt").write_text("c\nb\na\n")
    found = open_class_set(settings(folder / "t.csv", tmp_path, classnames=str(tmp_path / "names.txt")), "test")
    assert found.labels.tolist() == [2, 0]
    rows = ["filepath,label,split", *(f"test/ant/{i}.png,{y},test" for i, y in enumerate(("1.0", "0.0", "nan")))]
    (folder / "t.csv").write_text("\n".join([*rows, "test/ant/0.png,-1,test", "test/ant/1.png,2.0,train"]))
    found = open_class_set(settings(folder / "t.csv", tmp_path), "test")
    assert found.labels.tolist() == [1, 0] and len(found.class_names) == 3  # as pandas writes numbers beside blanks
    (folder / "test.tsv").write_text("filepath\tlabel\ntest/ant/0.png\t1\n")
    found = open_class_set(settings(folder / "{split}.tsv", tmp_path), "test")
    assert found.labels.tolist() == [1] and found.class_names == ["0", "1"]


@pytest.mark.parametrize(
    "line, sentence",
    [("../x.png,a,test", "t.csv:2: .*leaves the folder"), ("test/ant/0.png,a", "t.csv:2: the row has 2 columns"),
     ("test/ant/0.png,,test", "no class: 1, first .*t.csv:2.; at most a share of"),
     ("test/none.png,a,test", "none.png: cannot be read")],
)  # fmt: skip
def test_a_bad_row_of_a_table_is_named(folder, tmp_path, line, sentence):
    (folder / "t.csv").write_text(f"filepath,label,split\n{line}\n")
    with pytest.raises(DataError, match=sentence):
        open_class_set(settings(folder / "t.csv", tmp_path), "test")


# ---- ELEVATER


@pytest.fixture
def elevater(tmp_path):
    root = tmp_path / "classification" / "toy_20210101"
    root.mkdir(parents=True)
    with zipfile.ZipFile(root / "test.zip", "w") as archive:
        for number in range(3):
            archive.writestr(f"a b/{number}.png", png(tmp_path / "x.png", number))
    (root / "test.txt").write_text("test.zip@a b/0.png 0\ntest.zip@a b/1.png 1\ntest.zip@a b/2.png 1\n")
    (root / "labels.txt").write_text("cat\ndog\n")
    describe(tmp_path)
    return root


def describe(tmp_path, **changes):
    entry = {"name": "toy", "type": "classification_multiclass", "root_folder": "classification/toy_20210101",
             "test": {"index_path": "test.txt", "num_images": 3}, "labelmap": "labels.txt",
             "num_classes": 2}  # fmt: skip
    (tmp_path / "vision_datasets.json").write_text(json.dumps([entry | changes]))


def test_elevater_is_read_inside_its_zips(elevater, tmp_path):
    found = open_class_set(settings("elevater:toy", tmp_path), "test")
    assert found.labels.tolist() == [0, 1, 1] and found.class_names == ["cat", "dog"] and found.metric == "accuracy"
    assert [int(found.image(row)[0, 0, 0]) for row in range(3)] == [0, 1, 2]
    assert pickle.loads(pickle.dumps(found)).read(2) == found.read(2)


def test_elevater_has_several_labels_and_coco_indices(elevater, tmp_path):
    (elevater / "test.txt").write_text("test.zip@a b/0.png 0,1\ntest.zip@a b/1.png 1\ntest.zip@a b/2.png 0\n")
    describe(tmp_path, type="classification_multilabel")
    found = open_class_set(settings("elevater:toy", tmp_path, metric="mAP11"), "test")
    assert found.labels.tolist() == [[True, True], [False, True], [True, False]]
    with pytest.raises(UserError, match="several classes an image"):
        open_training(settings("elevater:toy", tmp_path, metric="mAP11"), "test", found)
    coco = {"images": [{"id": 7, "file_name": "a b/0.png", "zip_file": "test.zip"}],
            "annotations": [{"image_id": 7, "category_id": 2}],
            "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}]}  # fmt: skip
    (elevater / "test.json").write_text(json.dumps(coco))
    describe(tmp_path, format="coco", test={"index_path": "test.json", "num_images": 1})
    found = open_class_set(settings("elevater:toy", tmp_path), "test")
    assert found.labels.tolist() == [1] and found.class_names == ["x", "y"]


@pytest.mark.parametrize(
    "line, sentence",
    [("../../y.zip@a.png 0", "test.txt:1: .*leaves the folder"),
     ("test.zip@../a.png 0", "test.txt:1: .*leaves the folder"),
     ("test.zip@a.png cat", "test.txt:1: a path and its labels"),
     ("test.zip@/etc/passwd 0", "test.txt:1: .*is not below"),
     ("test.zip@a b/0.png 0", "lists 1 images, and vision_datasets.json says 3")],
)  # fmt: skip
def test_elevater_indices_are_distrusted(elevater, tmp_path, line, sentence):
    (elevater / "test.txt").write_text(line + "\n")
    with pytest.raises(DataError, match=sentence):
        open_class_set(settings("elevater:toy", tmp_path), "test")


def test_zip_bombs_are_not_unpacked(elevater, tmp_path, monkeypatch):
    """Neither one that says its size, nor one whose header understates it."""
    monkeypatch.setattr(classes_elevater, "MOST_BYTES", 1000)
    with zipfile.ZipFile(elevater / "test.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a b/0.png", b"0" * 100_000)
    reader = classes_elevater.ZipReader(elevater)
    with pytest.raises(DamagedImage, match=r"has 100,000 bytes unpacked; no more than 1,000"):
        reader("test.zip@a b/0.png")
    data = (elevater / "test.zip").read_bytes()
    (elevater / "liar.zip").write_bytes(data.replace(struct.pack("<I", 100_000), struct.pack("<I", 900)))
    with pytest.raises(DamagedImage, match=r"cannot be read|more than"):
        assert len(reader("liar.zip@a b/0.png")) <= 1000
    with pytest.raises(DamagedImage, match=r"has no member 'none.png'"):
        reader("test.zip@none.png")
    (elevater / "no.zip").write_bytes(b"no zip")
    with pytest.raises(DamagedImage, match="cannot be read"):
        reader("no.zip@a.png")


def test_the_real_metadata_name_every_set_of_the_specification(real_data, tmp_path):
    path = real_data / "probes" / "elevater" / "vision_datasets.json"
    names = [entry["name"] for entry in json.loads(path.read_bytes())]
    assert len(names) == 21
    mean = {name for name in names if metric_of(benchmark_key(name)) == "mean_per_class"}
    assert mean == {"caltech-101", "fgvc-aircraft-2013b-variants102", "oxford-flower-102", "oxford-iiit-pets"}
    assert metric_of(benchmark_key("voc-2007-classification")) == "mAP11"
    assert metric_of(benchmark_key("hateful-memes")) == "auc"
    with pytest.raises(UserError, match=r"cannot be read: No such file.*--datasets_dir names"):
        open_class_set(settings("elevater:dtd", tmp_path, metadata=str(path)), "test")


# ---- torchvision, scenes


def test_torchvision_reads_what_is_on_disk(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, count in (("t10k", 3), ("train", 4)):
        pixels = np.arange(count, dtype=np.uint8).repeat(28 * 28).tobytes()
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, count, 28, 28) + pixels)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, count) + bytes([7, 2, 1, 0][:count]))
    found = open_class_set(settings("torchvision:MNIST", tmp_path), "test")
    assert found.labels.tolist() == [7, 2, 1] and len(found.class_names) == 10
    assert found.image(2).shape == (3, 28, 28) and int(found.image(2)[0, 0, 0]) == 2
    with pytest.raises(UserError, match="has no split 'val'; it has train, test"):
        open_class_set(settings("torchvision:MNIST", tmp_path), "val")
    with pytest.raises(DataError, match=r"CIFAR10 cannot be read below .*nothing is downloaded"):
        open_class_set(settings("torchvision:cifar10", tmp_path), "test")
    with pytest.raises(UserError, match="torchvision:Nothing is not one of CIFAR10"):
        open_class_set(settings("torchvision:Nothing", tmp_path), "test")


def test_scenes_of_one_thing_are_classes_of_colour_and_shape(shapes_root, tmp_path):
    args = settings(shapes_root, tmp_path)
    train, test = open_class_set(args, "train"), open_class_set(args, "test")
    scenes = [json.loads(line) for line in (shapes_root / "scenes" / "mscoco_train.jsonl").read_text().splitlines()]
    single = [scene for scene in scenes if len(scene["objects"]) == 1]
    assert len(train) == len(single) and len(train.class_names) == 32
    thing = single[0]["objects"][0]
    assert train.class_names[train.labels[0]] == f"{thing['color']} {thing['shape']}"
    assert open_validation(args, None, {"train": train, "test": test}) is not None


def test_descriptions_of_one_thing_are_classes_too(tmp_path):
    (tmp_path / "shapes.json").write_text("{}")
    png(tmp_path / "a.jpg"), png(tmp_path / "b.jpg")
    rows = ["filepath\ttitle\tattribute_swap\trelation_swap",
            "a.jpg\ta large red dotted ring right, on a gray background\t\t",
            "b.jpg\ta small red solid ring left, an orange large dotted cross"
            ", a large blue dotted square, on a gray background\t\t"]  # fmt: skip
    (tmp_path / "test.tsv").write_text("\n".join(rows) + "\n")
    found = open_class_set(settings(tmp_path, tmp_path), "test")
    assert found.ids == ["a.jpg"] and found.class_names[found.labels[0]] == "red ring"


# ---- names, templates, held-out images


def test_class_names_and_templates_of_clip_benchmark(real_data):
    folder = real_data / "probes" / "clip_benchmark"
    templates = folder / "en_zeroshot_classification_templates.json"
    counts = {"imagenet1k": 80, "cifar10": 18, "caltech101": 34, "cars": 8, "dtd": 8, "country211": 5, "eurosat": 3,
              "gtsrb": 3, "stl10": 2, "sun397": 2, "fgvc_aircraft": 2, "pets": 1}  # fmt: skip
    for key, count in counts.items():
        found = read_templates(templates, key)
        assert len(found) == count and all("{}" in template for template in found)
    assert read_templates(templates, "cifar10")[0] == "a photo of a {}."
    assert len(read_list(folder / "en_classnames.json", "flowers", "class names")) == 102
    names = read_list(folder / "en_classnames.json", "clevr_closest_object_distance", "class names")
    assert len(names) == 6 and names.count("") == 1  # as published: between "near" and "distant" it says nothing
    with pytest.raises(UserError, match="has no templates of 'nothing': choose one with --benchmark_key"):
        read_templates(templates, "nothing")


def test_names_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "n.txt"
    path.write_text("dog\ncat\n")
    with pytest.raises(DataError, match="another order: class 0 is 'cat' there and 'dog' here"):
        named(["cat", "dog"], path, "x", "toy")
    with pytest.raises(DataError, match="has 2 names for the 3 classes of toy"):
        named(["a", "b", "c"], path, "x", "toy")
    (tmp_path / "t.txt").write_text("a photo\n")
    with pytest.raises(DataError, match="'a photo' has neither"):
        read_templates(tmp_path / "t.txt", "x")


def test_prompts_fill_names_in_as_they_are():
    prompts = Prompts(["a {0} {}", "b"], ["x {}.", "y {} {}"])
    assert [prompts.text(number) for number in range(len(prompts))] == [
        "x a {0} {}.",
        "y a {0} {} a {0} {}",
        "x b.",
        "y b b",
    ]


def test_held_out_images_are_a_fifth_of_each_class():
    labels = np.array([0] * 50 + [1] * 10 + [2] * 2 + [3])
    chosen = held_out(labels, seed=0)
    assert np.bincount(labels[chosen], minlength=4).tolist() == [10, 2, 1, 0]
    assert (chosen == held_out(labels, seed=0)).all() and (chosen != held_out(labels, seed=1)).any()
