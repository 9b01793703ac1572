"""From files to batches: what a batch of the built-in set holds."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clip_vl.datasets.loader import build_loader
from clip_vl.datasets.lxmert.annotations import build_pretrain_annotations, build_vqa_annotations
from clip_vl.datasets.lxmert.answers import AnswerTable, read_label_vocab
from clip_vl.datasets.lxmert.batches import eval_batches, open_images, train_batches
from clip_vl.datasets.lxmert.pretrain import PretrainDataset
from clip_vl.datasets.lxmert.vqa import VQADataset
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer


@pytest.fixture(scope="module")
def args(shapes_root):
    return SimpleNamespace(
        data_root=str(shapes_root), seed=1, image_size_min=64, image_size_max=96, dynamic_padding=False, use_lmdb=False,
        features=None,
        aspect_ratio_group_factor=0, batch_size=8, sentences_per_image=2, max_train_samples=None, max_eval_samples=None,
        num_workers=0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def annotations(shapes_root):
    return build_pretrain_annotations(
        [shapes_root / "lxmert" / "mscoco_train.json"],
        tokenizer=load_tokenizer(shapes_root / "bert-base-uncased"),
        answer_table=AnswerTable(shapes_root / "lxmert" / "all_ans.json"),
        image_sizes=shapes_root / "mscoco" / "width_heigths.json",
        cache_root=shapes_root / "cache",
    )


def test_a_batch_decodes_each_image_once_and_pads_to_one_canvas(annotations, args):
    dataset = PretrainDataset(annotations, open_images(args), args, exchange_rate=0.5)
    rows = train_batches(annotations, args).epoch(0)[0]
    batch = dataset[(0, rows)]
    assert tuple(batch["images"].shape[2:]) in {(64, 96), (96, 64)} and batch["images"].dtype == torch.uint8
    assert len(batch["images"]) == len(np.unique(annotations.image_index[rows])) <= 4
    assert batch["image_of_text"].shape == (8,) and batch["damaged"] == []


def test_draws_depend_on_seed_epoch_and_row_alone(annotations, args):
    dataset = PretrainDataset(annotations, open_images(args), args, exchange_rate=0.5)
    rows = train_batches(annotations, args).epoch(0)[0]
    first, again, other = (dataset[(epoch, rows)] for epoch in (0, 0, 1))
    assert torch.equal(first["input_ids"], again["input_ids"]) and torch.equal(first["matched"], again["matched"])
    assert not (torch.equal(first["matched"], other["matched"]) and torch.equal(first["answer"], other["answer"]))
    alone = dataset[(0, rows[:1])]
    assert alone["matched"][0] == first["matched"][0] and alone["answer"][0] == first["answer"][0]


def test_exchanged_sentences_are_of_other_images_and_never_answered(annotations, args):
    dataset = PretrainDataset(annotations, open_images(args), args, exchange_rate=1.0)
    rows = train_batches(annotations, args).epoch(0)[0]
    batch = dataset[(0, rows)]
    assert (batch["matched"] == 0).all() and (batch["answer"] == -1).all()


def test_answers_are_drawn_in_proportion_to_their_scores(annotations, args):
    dataset = PretrainDataset(annotations, open_images(args), args, exchange_rate=0.0)
    row = next(i for i in range(len(annotations)) if len(annotations.answers(i)[0]) == 2)
    from clip_vl.engine.random import numpy_rng

    ids, scores = annotations.answers(row)
    drawn = [dataset._answer(row, numpy_rng(0, "t", i)) for i in range(3000)]
    assert drawn.count(int(ids[0])) / 3000 == pytest.approx(float(scores[0] / scores.sum()), abs=0.04)


def test_workers_change_nothing(annotations, args):
    dataset = PretrainDataset(annotations, open_images(args), args, exchange_rate=0.5)
    batches = train_batches(annotations, args).epoch(0)[:4]
    loaders = [build_loader(dataset, 0, batches, SimpleNamespace(num_workers=n), torch.device("cpu")) for n in (0, 2)]
    for one, two in zip(*loaders):
        assert torch.equal(one["images"], two["images"]) and torch.equal(one["input_ids"], two["input_ids"])


def test_vqa_scores_are_the_annotators(shapes_root, args):
    answers = read_label_vocab(shapes_root / "vqa")
    annotations = build_vqa_annotations(
        [shapes_root / "vqa" / "minival.json"],
        tokenizer=load_tokenizer(shapes_root / "bert-base-uncased"),
        answers=answers,
        image_sizes=shapes_root / "mscoco" / "width_heigths.json",
        cache_root=shapes_root / "cache",
    )
    dataset = VQADataset(annotations, open_images(args), args, num_answers=len(answers))
    seen = []
    for rows in eval_batches(annotations, args):
        batch = dataset[(0, rows)]
        for row, scores in zip(rows, batch["answer_scores"]):
            ids, values = annotations.answers(int(row))
            assert scores.sum().item() == pytest.approx(float(values.sum())) and (scores[list(ids)] > 0).all()
        seen += rows.tolist()
    assert sorted(seen) == list(range(len(annotations)))
