"""The published forms of COCO, Flickr and ImageNet captions, each by a small case, and the real list where it is."""

import json

import numpy as np
import pytest

from clip_vl.datasets.captions.json import open_caption_json
from clip_vl.datasets.storage.cache import writable_root
from clip_vl.engine.errors import DataError, UserError
from clip_vl.flags.captions import SourceFlags

KARPATHY = {
    "dataset": "coco",
    "images": [
        {
            "filepath": "train2014",
            "filename": "a.jpg",
            "split": "train",
            "sentences": [{"raw": "one "}, {"raw": "two"}],
        },
        {"filepath": "val2014", "filename": "b.jpg", "split": "restval", "sentences": [{"raw": "three"}]},
        {"filepath": "val2014", "filename": "c.jpg", "split": "val", "sentences": [{"raw": "four"}]},
        {"filepath": "val2014", "filename": "d.jpg", "split": "test", "sentences": [{"raw": w} for w in "abcdef"]},
    ],
}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


def opened(root, value, splits=None, name="karpathy/dataset_coco.json", images=(), every=1, **settings):
    path = root / name
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    for image in images or [f"mscoco/{e['filepath']}/{e['filename']}" for e in KARPATHY["images"]]:
        (root / image).parent.mkdir(exist_ok=True, parents=True)
        (root / image).write_bytes(image.encode())
    settings = SourceFlags(datasets_dir=str(root), **settings)
    return open_caption_json(path, splits, settings, root / "cache", every)


def rows(source):
    return [(source.read(row).decode(), source.captions(row)) for row in range(len(source))]


def test_karpathys_own_form_and_its_splits(tmp_path):
    train = [("mscoco/train2014/a.jpg", ["one", "two"]), ("mscoco/val2014/b.jpg", ["three"])]
    assert rows(opened(tmp_path, KARPATHY)) == train
    assert rows(opened(tmp_path, KARPATHY, ["train"])) == train[:1]
    assert rows(opened(tmp_path, KARPATHY, ["val"])) == [("mscoco/val2014/c.jpg", ["four"])]
    assert opened(tmp_path, KARPATHY, ["test"]).num_captions(0) == 6  # not five


def test_flickr_entries_have_no_folder(tmp_path):
    entry = {"filename": "1.jpg", "split": "train", "sentences": [{"raw": "a dog"}]}
    source = opened(tmp_path, {"images": [entry]}, images=["flickr30k_images/1.jpg"])
    assert rows(source) == [("flickr30k_images/1.jpg", ["a dog"])]


def test_lists_of_images_and_of_captions(tmp_path):
    images = ["mscoco/val2014/a.jpg", "mscoco/val2014/b.jpg"]
    value = [{"image": "val2014/a.jpg", "caption": ["one", "two"]}, {"image": "val2014/b.jpg", "caption": ["three"]}]
    expected = list(zip(images, (["one", "two"], ["three"])))
    assert rows(opened(tmp_path, value, images=images)) == expected
    flat = [{"image": e["image"], "caption": c, "image_id": "coco_1"} for e in value for c in e["caption"]]
    assert rows(opened(tmp_path, flat, images=images)) == expected


def test_a_folder_that_the_data_root_calls_otherwise_is_left_out(tmp_path):
    value = [{"image": "flickr30k-images/1.jpg", "caption": ["a dog"]}]
    assert rows(opened(tmp_path, value, images=["flickr30k_images/1.jpg"])) == [("flickr30k_images/1.jpg", ["a dog"])]


def test_tables_of_hubs_as_a_list_and_as_lines(tmp_path):
    images = ["mscoco/val2014/a.jpg", "flickr30k_images/b.jpg"]
    coco = [{"sentences": ["one", "two"], "url": "http://images.cocodataset.org/val2014/a.jpg"}]
    assert rows(opened(tmp_path, coco, images=images)) == [(images[0], ["one", "two"])]
    flickr = [{"image": "b.jpg", "caption": ["x"], "split": s} for s in ("test", "train")]
    lines = "\n".join(map(json.dumps, flickr))
    assert rows(opened(tmp_path, lines, ["test"], "karpathy/rows.jsonl", images)) == [(images[1], ["x"])]


@pytest.mark.parametrize("order", [1, -1])
def test_the_official_file_joins_captions_to_images_in_any_order(tmp_path, order):
    annotations = [
        {"image_id": 7, "caption": "one"},
        {"image_id": 9, "caption": "three"},
        {"image_id": 7, "caption": "two"},
    ]
    images = [{"id": 7, "file_name": "COCO_train2014_7.jpg"}, {"id": 9, "file_name": "COCO_train2014_9.jpg"}]
    members = [("info", {"year": 2014}), ("images", images), ("annotations", annotations)][::order]
    files = [f"mscoco/train2014/COCO_train2014_{number}.jpg" for number in (7, 9)]
    source = opened(tmp_path, dict(members), name="official/captions_train2014.json", images=files)
    assert rows(source) == list(zip(files, (["one", "two"], ["three"])))


def official(root, images, annotations):
    images = [{"id": number, "file_name": f"{name}.jpg"} for number, name in images]
    annotations = [{"image_id": number, "caption": caption} for number, caption in annotations]
    files = [f"mscoco/train2014/{image['file_name']}" for image in images]
    value = {"images": images, "annotations": annotations}
    return opened(root, value, name="official/captions_train2014.json", images=files)


def test_ids_join_captions_to_images_as_numbers_and_as_texts(tmp_path):
    source = official(tmp_path, [(7, "a"), ("8", "b"), (9.0, "c")], [("7", "x"), (7.0, "y"), (8, "z"), ("9", "w")])
    assert [captions for _, captions in rows(source)] == [["x", "y"], ["z"], ["w"]]
    for images, annotations, sentence in (
        ([(7, "a"), ("7", "b")], [(7, "x")], r"json:1: the id 7 of 'b.jpg' is the id of 'train2014/a.jpg' already"),
        ([(True, "a")], [(1, "x")], r"an id must be a number or a text, not True"),
        (
            [(1, "a")],
            [(1, "x"), (2, "y"), ("01", "z")],
            r"2 of 3 captions are left out \(no image has their image_id: 2",
        ),
    ):
        with pytest.raises(DataError, match=sentence):
            official(tmp_path, images, annotations)


def test_what_is_left_out_is_counted_and_said_at_every_opening(tmp_path, capsys):
    for _ in range(2):
        source = official(tmp_path, [(1, "a"), (2, "b"), (3, "c")], [(1, "x"), (1, " "), (1, "z"), (2, "y"), (9, "w")])
        assert [captions for _, captions in rows(source)] == [["x", "z"], ["y"]]
        printed = capsys.readouterr().out
        assert "3 of 6 captions are left out" in printed and "the caption is blank: 1, first" in printed
        assert "no image has their image_id: 1, first" in printed and "the image has no caption: 1, first" in printed


@pytest.mark.parametrize("none", [None, []])
def test_an_image_without_captions_is_left_out_as_in_tables_and_folders(tmp_path, capsys, none):
    value = [{"image": "a.jpg", "caption": "x"}, {"image": "b.jpg", "caption": none}]
    assert rows(opened(tmp_path, value, images=["mscoco/a.jpg"])) == [("mscoco/a.jpg", ["x"])]
    assert "1 of 2 captions are left out (the image has no caption: 1" in capsys.readouterr().out


def test_of_two_folders_with_images_of_these_names_the_one_with_more_counts(tmp_path):
    value = [{"image": f"{name}.jpg", "caption": "x"} for name in "abc"]
    source = opened(tmp_path, value, images=["karpathy/a.jpg", *(f"mscoco/{name}.jpg" for name in "abc")])
    assert [path for path, _ in rows(source)] == ["mscoco/a.jpg", "mscoco/b.jpg", "mscoco/c.jpg"]


def test_imagenet_captions_are_joined_and_classed(tmp_path):
    entry = {
        "wnid": "n01",
        "filename": "n01_1.JPEG",
        "title": "My fish",
        "tags": ["tench", "pond"],
        "description": "by\nme",
    }
    images = ["train/n01/n01_1.JPEG", "train/n02/n02_1.JPEG"]
    value = [entry, {**entry, "wnid": "n02", "filename": "n02_1.JPEG", "tags": [], "description": None}]
    source = opened(tmp_path, value, images=images, images_dir=str(tmp_path / "train"))
    assert rows(source) == list(zip(images, (["My fish tench pond by me"], ["My fish"])))
    assert [source.label(0), source.label(1), source.num_classes] == [0, 1, 2]


def test_every_tenth_and_one_caption_at_random(tmp_path):
    entries = [{"image": f"{i}.jpg", "caption": [f"{i} {j}" for j in range(5)]} for i in range(40)]
    source = opened(tmp_path, entries, images=["mscoco/0.jpg"], every=10)
    assert [source.captions(row)[0] for row in range(len(source))] == ["0 0", "10 0", "20 0", "30 0"]
    drawn = {source.caption(1, np.random.default_rng(seed)) for seed in range(60)}
    assert drawn == set(source.captions(1))


@pytest.mark.parametrize(
    "value, splits, sentence",
    [
        ([{"image": "a.jpg"}], None, "the entry has no captions"),
        ([{"image": "../a.jpg", "caption": "x"}], None, "'../a.jpg' leaves the folder of the images"),
        ([{"image": "/a.jpg", "caption": "x"}], None, "'/a.jpg' is not below"),
        ([{"caption": "x"}], None, "the entry has no 'url'"),
        ([{"image": "a.jpg", "caption": [" "]}], None, "holds no captioned image; the caption is blank: 1"),
        ([{"image": "a.jpg", "caption": "a \ud83c"}], None, "json:1: 'a \\ud83c' holds half of a surrogate"),
        ([{"image": "a.jpg", "caption": [3]}], None, "3 is no caption"),
        ([{"image": "a.jpg", "caption": "x"}], ["val"], "the entry names no split"),
        ([3], None, "an entry must be an object, not 3"),
        (KARPATHY, ["dev"], "(splits dev) holds no captioned image"),
        ('{"images": [{"image": "a.jpg", "caption": "x"}', None, "the file ends"),
        ({"images": [{"id": 1, "file_name": "../../x.jpg"}]}, None, "leaves the folder"),
    ],
)
def test_a_bad_entry_is_named_by_its_line(tmp_path, value, splits, sentence):
    with pytest.raises(DataError) as caught:
        opened(tmp_path, value, splits)
    assert sentence in str(caught.value) and "dataset_coco.json" in str(caught.value)


def test_images_that_are_nowhere_name_where_they_were_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"such as x/a\.jpg, are in none of .*mscoco.*--images_dir"):
        opened(tmp_path, [{"image": "x/a.jpg", "caption": "x"}], images=["unrelated.jpg"])


def test_the_real_list_of_coco_has_1500_images_and_their_captions(tmp_path, real_data):
    path = real_data / "probes" / "retrieval" / "coco_karpathy_test_first1500.json"
    if not path.exists():
        pytest.skip("CLIP_VL_REAL_DATA has no probes/retrieval")
    entries = json.loads(path.read_text())
    image = tmp_path / "mscoco" / entries[0]["image"]
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    source = open_caption_json(path, None, SourceFlags(datasets_dir=str(tmp_path)), tmp_path / "cache")
    assert len(source) == len(entries) == 1500
    assert source.num_texts == sum(len(entry["caption"]) for entry in entries)
    assert source.captions(700) == [caption.strip() for caption in entries[700]["caption"]]
