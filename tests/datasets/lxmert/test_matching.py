"""Batches of pairs to judge: which texts an image meets, and the parts of processes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.datasets.captions.sources import open_sources
from clip_vl.datasets.lxmert.matching import MatchingDataset, draw_pairs, image_sizes, whole_batches
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine.errors import UserError

ARGS = {"datasets_dir": "", "images_dir": None, "csv_separator": None, "csv_img_key": "filepath", "seed": 1,
        "csv_caption_key": "title", "csv_label_key": None, "dataset_size": None, "train_data": "pairs", "batch_size": 4,
        "negatives": 2, "max_length": 8, "image_size_min": 32, "image_size_max": 48, "dynamic_padding": False,
        "aspect_ratio_group_factor": 0}  # fmt: skip


@pytest.mark.parametrize("negatives, met", [(3, 3), (50, 7)])
def test_each_image_meets_as_many_other_texts_as_each_text_meets_images(negatives, met):
    images, texts = draw_pairs(range(8), range(8), negatives, np.random.default_rng(0))
    assert images[:8].tolist() == texts[:8].tolist() == list(range(8))
    assert len({*zip(images.tolist(), texts.tolist())}) == len(images) == 8 * (1 + met)
    assert (np.bincount(images) == 1 + met).all() and (np.bincount(texts) == 1 + met).all()


def test_a_text_of_the_same_image_or_of_the_same_words_is_no_negative():
    ids, texts = [7, 5, 7, 3], ["a", "b", "c", "b"]
    images, others = draw_pairs(ids, texts, 9, np.random.default_rng(0))
    pairs = set(zip(images.tolist(), others.tolist()))
    assert pairs == {(i, j) for i in range(4) for j in range(4)} - {(0, 2), (2, 0), (1, 3), (3, 1)}


def test_every_other_text_is_met_in_some_epoch():
    found = [draw_pairs(range(6), range(6), 1, np.random.default_rng(seed)) for seed in range(60)]
    assert len({pair for images, texts in found for pair in zip(images[6:].tolist(), texts[6:].tolist())}) == 30


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """(source, tokenizer, flags): six landscapes and three portraits, of which 2.png is no picture."""
    root = tmp_path_factory.mktemp("matching")
    for number in range(9):
        Image.new("RGB", (30, 50) if number > 5 else (60, 40), (20 * number, 0, 0)).save(root / f"{number}.png")
    (root / "2.png").write_bytes(b"no picture")
    lines = [f"{number}.png\tw{number}" for number in range(9)]
    (root / "pairs.tsv").write_text("filepath\ttitle\n" + "\n".join(lines) + "\n")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"w{number}" for number in range(9))]
    (root / "vocab.txt").write_text("\n".join(words) + "\n")
    args = SimpleNamespace(**ARGS | {"datasets_dir": str(root), "max_left_out": 0.5})
    return open_sources(str(root / "pairs.tsv"), args), load_tokenizer(root), args


def test_sizes_come_from_the_headers_and_a_batch_has_one_canvas(data):
    source, tokenizer, args = data
    sizes = image_sizes(source, args.datasets_dir + "/cache")
    assert sizes.tolist() == [[40, 60]] * 2 + [[1, 2]] + [[40, 60]] * 3 + [[50, 30]] * 3
    order, dataset = whole_batches(source, sizes, args), MatchingDataset(source, sizes, tokenizer, args)
    batches = [dataset[0, rows] for rows in order.epoch(0)]
    assert {tuple(batch["images"].shape[2:]) for batch in batches} == {(32, 48), (48, 32)}
    assert {int(row) for batch in batches for row in batch["rows"]} == set(range(9))
    for batch in batches:
        assert batch["usable"].tolist() == [int(row) != 2 for row in batch["rows"]]
        assert {name for name, _ in batch["damaged"]} == {source.name(2) for row in batch["rows"] if row == 2}
        own = batch["image_of_text"] == batch["text_of_pair"]
        words = [tokenizer.decode(ids) for ids in batch["input_ids"][own]]
        assert words == [f"w{int(batch['rows'][place])}" for place in batch["image_of_text"][own]]


def test_the_parts_of_two_processes_are_the_batch_of_one(data):
    source, tokenizer, args = data
    sizes = image_sizes(source, args.datasets_dir + "/cache")
    rows = np.array([3, 0, 5, 1])
    whole, found = MatchingDataset(source, sizes, tokenizer, args)[2, rows], []
    for rank in range(2):
        dataset = MatchingDataset(source, sizes, tokenizer, args)
        dataset.rank, dataset.world_size = rank, 2
        part = dataset[2, rows]
        assert torch.equal(part["images"], whole["images"][2 * rank : 2 * rank + 2])
        places = zip((part["image_of_text"] + 2 * rank).tolist(), part["text_of_pair"].tolist())
        found += [(*pair, tokenizer.decode(ids)) for pair, ids in zip(places, part["input_ids"])]
    pairs = zip(whole["image_of_text"].tolist(), whole["text_of_pair"].tolist(), whole["input_ids"])
    assert sorted(found) == sorted((i, j, tokenizer.decode(ids)) for i, j, ids in pairs)


def test_weights_of_sources_are_refused(data):
    source, _, args = data
    source = open_sources(f"{source.name(0).rpartition('/')[0]}/pairs.tsv:0.5", args)
    with pytest.raises(UserError, match="weights are for `align`"):
        whole_batches(source, image_sizes(source, args.datasets_dir + "/cache"), args)
