"""--train_data: what an entry may be, mixes with weights, and the sentences for what it may not be."""

import json
import pickle

import numpy as np
import pytest

from clip_vl.datasets.captions.folders import TEMPLATES
from clip_vl.datasets.captions.sources import open_sources
from clip_vl.datasets.storage.cache import writable_root
from clip_vl.engine.errors import UserError
from clip_vl.flags.captions import SourceFlags


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


@pytest.fixture
def root(tmp_path):
    """A data root with two tables, a folder of classes and COCO in both forms."""
    write(tmp_path / "a.csv", "filepath,title,y\n" + "".join(f"{i}.jpg,a {i},{i % 3}\n" for i in range(6)))
    write(tmp_path / "b.tsv", "title\tfilepath\ty\n" + "".join(f"b {i}\tb{i}.jpg\t{i}\n" for i in range(4)))
    for name in ("cat/1.jpg", "dog/1.jpg", "dog/2.jpg"):
        write(tmp_path / "pets" / name, name)
    images = [{"filepath": "val2014", "filename": f"{i}.jpg", "split": s, "sentences": [{"raw": f"{s} {i}"}]}
              for i in range(25) for s in ("train", "val")]  # fmt: skip
    write(tmp_path / "karpathy" / "dataset_coco.json", json.dumps({"images": images}))
    for split in ("train", "val"):
        official = {"images": [{"id": 1, "file_name": "0.jpg"}], "annotations": [{"image_id": 1, "caption": split}]}
        write(tmp_path / "official" / f"captions_{split}2014.json", json.dumps(official))
        write(tmp_path / "mscoco" / f"{split}2014" / "0.jpg", split)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def settings(root, **given):
    return SourceFlags(datasets_dir=str(root), **given)


def told(spec, *given, **named):
    with pytest.raises(UserError) as caught:
        open_sources(spec, settings(*given, **named))
    return str(caught.value)


def test_a_mix_numbers_rows_texts_and_classes_through(root):
    mixture = open_sources(f"{root}/a.csv:2, b.tsv ,pets:0.5", settings(root, csv_label_key="y"))
    assert len(mixture) == 13
    assert mixture.segments == [(6, 2.0), (4, 1.0), (3, 0.5)]
    assert [mixture.label(row) for row in range(13)] == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert mixture.num_classes == 9
    assert mixture.captions(8) == ["b 2"] and "a photo of a dog." in mixture.captions(11)
    assert mixture.name(10) == str(root / "pets/cat/1.jpg")
    assert [mixture.text(mixture.text_number(row, 0)) for row in (5, 6)] == ["a 5", "b 0"]
    assert pickle.loads(pickle.dumps(mixture)).captions(8) == ["b 2"]
    with pytest.raises(IndexError):
        mixture.name(13)


def test_pairs_without_classes_stay_without_in_a_mix(root):
    mixture = open_sources("pets,a.csv", settings(root))
    assert [mixture.label(row) for row in range(len(mixture))] == [0, 1, 1, *[-1] * 6]


@pytest.mark.parametrize("size, segments", [(4, [(4, 1.0)]), (8, [(6, 1.0), (2, 1.0)]), (99, [(6, 1.0), (4, 1.0)])])
def test_dataset_size_keeps_the_first_rows(root, size, segments):
    mixture = open_sources("a.csv,b.tsv", settings(root, dataset_size=size))
    assert mixture.segments == segments and len(mixture) == sum(rows for rows, _ in segments)
    assert mixture.num_texts == len(mixture)  # no others are encoded by a frozen tower


def test_the_texts_of_the_first_rows_are_the_first_texts(root):
    mixture = open_sources("a.csv,pets,b.tsv", settings(root))
    prompts = 2 * len(TEMPLATES)
    expected = [0, 1, 2, 3, 4, 5, 6, *[6 + prompts] * 3, *(6 + prompts + i for i in (1, 2, 3, 4))]
    assert [mixture.texts_of_first(rows) for rows in range(14)] == expected
    assert open_sources("a.csv,pets", settings(root, dataset_size=6)).num_texts == 6


def test_named_coco_sets(root):
    def captions(spec):
        source = open_sources(spec, settings(root))
        return [source.captions(row)[0] for row in range(len(source))]

    assert captions("mscoco_captions") == [f"train {i}" for i in range(25)]
    assert captions("mscoco_captions@val") == [f"val {i}" for i in range(25)]
    assert captions("mscoco_captions_x0.1") == ["train 0", "train 10", "train 20"]
    assert captions("mscoco_captions_2014") == ["train"] and captions("mscoco_captions_2014@val") == ["val"]


def test_the_built_in_scenes(shapes_root, tmp_path):
    given = settings(tmp_path)
    train = open_sources(f"shapes:{shapes_root}", given)
    assert len(train) == 52  # 40 of train, 12 of restval
    assert len(open_sources(f"shapes:{shapes_root}@test", given)) == 12
    assert len(open_sources(f"{shapes_root}/karpathy/dataset_coco.json@train+test:2", given)) == 52
    assert train.read(0).startswith(b"\xff\xd8") and train.num_captions(0) == 5
    drawn = [train.caption(0, np.random.default_rng(seed)) for seed in range(50)]
    assert set(drawn) == set(train.captions(0))


def test_digests_tell_sources_apart_and_not_their_weights(root):
    digests = {
        open_sources(spec, settings(root)).digest for spec in ("a.csv", "b.tsv", "a.csv,b.tsv", "b.tsv,a.csv", "pets")
    }
    assert len(digests) == 5
    assert open_sources("a.csv:3", settings(root)).digest == open_sources("a.csv", settings(root)).digest


def test_what_cannot_be_opened_is_a_sentence(root):
    assert "is a remote address, and training fetches nothing" in told("s3://bucket/data.csv", root)
    assert told("x.csv", root) == f"x.csv is not there, neither as a path nor below --datasets_dir {root}"
    assert "mscoco_captions_2017 is not one of mscoco_captions" in told("mscoco_captions_2017", root)
    assert "karpathy/dataset_coco.json, which does not exist" in told("mscoco_captions", root / "pets")
    assert "the table has no column 'split'" in told("a.csv@val", root)
    assert "a folder of classes has no splits" in told("pets@val", root)
    assert "the weight must be above 0" in told("a.csv:0", root)
    assert "--train_data names no data" in told(" , ", root)
    assert "--dataset_size 0 must be at least 1" in told("a.csv", root, dataset_size=0)
    write(root / "data.bin", "x")
    assert "data.bin has no known format" in told("data.bin", root)
