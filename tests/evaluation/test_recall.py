"""Ranks and recalls against cases solved by hand and a plain sort."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from clip_vl.evaluation import recall


def features(*shape, seed=0):
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_perfect_pairs_are_all_found():
    metrics = recall.retrieval_metrics(torch.eye(6), torch.eye(6), np.arange(6))
    assert metrics["text_to_image_recall@1"] == metrics["image_to_text_recall@1"] == metrics["mean_recall"] == 100


def test_a_case_solved_by_hand():
    """Two images, three texts: text 2 belongs to image 1 and lies nearer to image 0."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    metrics = recall.retrieval_metrics(images, texts, [0, 1, 1])
    assert metrics["text_to_image_recall@1"] == pytest.approx(200 / 3)
    assert metrics["text_to_image_mean_rank"] == pytest.approx(4 / 3)
    assert metrics["image_to_text_recall@1"] == 100


@pytest.mark.parametrize("chunk", [1, 40, 2**22])
def test_ranks_equal_a_plain_sort(chunk, monkeypatch):
    monkeypatch.setattr(recall, "CHUNK", chunk)
    images, texts = features(17, 8), features(51, 8, seed=1)
    owner = np.arange(51) % 17
    order = (texts @ images.T).argsort(dim=1, descending=True).numpy()
    wanted = [list(row).index(o) + 1 for row, o in zip(order, owner)]
    best, worst = recall.text_to_image_ranks(images, texts, owner)
    assert list(best) == list(worst) == wanted
    order = (images @ texts.T).argsort(dim=1, descending=True).numpy()
    first = [next(i for i, text in enumerate(row) if owner[text] == image) for image, row in enumerate(order)]
    assert list(recall.image_to_text_ranks(images, texts, owner)[0]) == [i + 1 for i in first]


def test_a_tie_counts_against_the_match_and_is_reported():
    images = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    metrics = recall.retrieval_metrics(images, images, [0, 1])
    assert metrics["text_to_image_recall@1"] == 0 and metrics["text_to_image_recall@1_optimistic"] == 100
    assert metrics["text_to_image_ties"] == 2


def test_intervals_resample_images_with_all_their_texts():
    """Texts of one image are right together: the interval is that of ten coins, not of a hundred."""
    images = torch.eye(10)
    texts = images.repeat_interleave(10, dim=0).clone()
    texts[:50] = images[9]  # all texts of five images say another one
    metrics = recall.retrieval_metrics(images, texts, np.arange(100) // 10)
    assert metrics["text_to_image_recall@1"] == 50 and metrics["text_to_image_recall@1_n"] == 100
    assert 15 <= metrics["text_to_image_recall@1_low"] <= 25 and 75 <= metrics["text_to_image_recall@1_high"] <= 85


@pytest.mark.parametrize("side", [0, 1])
def test_features_that_are_no_numbers_find_nothing(side):
    """Every comparison with NaN is false: counted the other way, a broken model would find everything."""
    features = [torch.eye(4), torch.eye(4)]
    features[side] = torch.full((4, 4), torch.nan)
    metrics = recall.retrieval_metrics(*features, np.arange(4), ks=(1,))
    assert metrics["text_to_image_recall@1"] == metrics["image_to_text_recall@1"] == 0
