"""Named protocols, folds, and ids of queries."""

import json

import numpy as np
import pytest

from clip_vl.datasets.captions.protocols import RetrievalPairs, find_protocol
from clip_vl.datasets.captions.source import NumberedPairs
from clip_vl.datasets.captions.sources import open_sources
from clip_vl.engine.errors import DataError, UserError
from clip_vl.flags.captions import SourceFlags


def make_source(tmp_path, images=6, captions=3):
    (tmp_path / "karpathy").mkdir()
    (tmp_path / "mscoco").mkdir()
    (tmp_path / "mscoco" / "0.jpg").write_bytes(b"")
    entries = [
        {"filename": f"{i}.jpg", "split": "test", "sentences": [{"raw": f"caption {n} of {i}"} for n in range(count)]}
        for i, count in enumerate(captions + (i == 2) for i in range(images))
    ]
    (tmp_path / "karpathy" / "dataset_coco.json").write_text(json.dumps({"images": entries}))
    return open_sources("mscoco_captions@test", SourceFlags(datasets_dir=str(tmp_path)))


def test_folds_take_whole_images_with_all_of_their_captions(tmp_path):
    pairs = RetrievalPairs(make_source(tmp_path), find_protocol("some.json", fold=2))
    assert pairs.folds == [(0, 2), (2, 4), (4, 6)] and len(pairs.numbers) == 19
    assert [pairs.source.text(int(pairs.numbers[t])) for t in pairs.texts_of(2, 4)] == [
        *(f"caption {n} of 2" for n in range(4)), *(f"caption {n} of 3" for n in range(3))
    ]  # fmt: skip


def test_the_first_captions_of_each_image_can_stand_alone(tmp_path):
    pairs = RetrievalPairs(make_source(tmp_path), find_protocol("some.json"), captions_per_image=2)
    assert np.bincount(pairs.image_of_text).tolist() == [2] * 6
    assert pairs.names() == ([f"{i}.jpg" for i in range(6)], [f"{i}.jpg#{n}" for i in range(6) for n in range(2)])


def test_a_named_protocol_refuses_other_data_than_its_own(tmp_path):
    """A part of the split would give a higher recall under the same name."""
    protocol = find_protocol("coco-karpathy-5k")
    with pytest.raises(DataError, match="5,000 images and 25,010 captions, mscoco_captions@test has 6 and 19"):
        RetrievalPairs(make_source(tmp_path), protocol)


def test_the_1k_protocol_is_five_folds_of_the_5k_one():
    one, five = find_protocol("coco-karpathy-1k"), find_protocol("coco-karpathy-5k")
    assert one.spec == five.spec and one.images / one.fold == 5 and five.fold == 0


def test_folds_that_do_not_come_out_even_are_refused(tmp_path):
    source = make_source(tmp_path)
    with pytest.raises(UserError, match="6 images do not make whole folds of 4"):
        RetrievalPairs(source, find_protocol("some.json", fold=4))
    with pytest.raises(UserError, match="leave out --fold_size"):
        find_protocol("coco-karpathy-1k", fold=4)


def test_the_first_1500_images_of_the_karpathy_test_split_load(real_data, tmp_path):
    """Three of these images have six captions, the others five: whoever assumes five shifts all that follow."""
    path = real_data / "probes" / "retrieval" / "coco_karpathy_test_first1500.json"
    if not path.is_file():
        pytest.skip(f"{path} is absent")
    first = json.loads(path.read_text())
    image = tmp_path / first[0]["image"]
    image.parent.mkdir(parents=True)
    image.write_bytes(b"")
    source = open_sources(str(path), SourceFlags(datasets_dir=str(tmp_path), images_dir=str(tmp_path)))
    held_out = NumberedPairs(source)
    assert len(held_out.rows) == 1500 and len(held_out.numbers) == 7503
    assert np.bincount(held_out.image_of_text).min() == 5
