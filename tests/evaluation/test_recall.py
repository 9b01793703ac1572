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


@pytest.mark.parametrize("tile", [(1, 1), (5, 8), (4, 100), (512, 1024)])
@pytest.mark.parametrize("owner", [np.arange(51) % 17, np.arange(51) // 3], ids=["mixed", "in order"])
def test_ranks_equal_a_plain_sort(tile, owner, monkeypatch):
    monkeypatch.setattr(recall, "TILES", {"cpu": tile})
    images, texts = features(17, 8), features(51, 8, seed=1)
    ranks = recall.feature_ranks(images, texts, owner)
    order = (texts @ images.T).argsort(dim=1, descending=True).numpy()
    wanted = [list(row).index(o) + 1 for row, o in zip(order, owner)]
    best, worst = ranks.text_to_image
    assert list(best) == list(worst) == wanted
    order = (images @ texts.T).argsort(dim=1, descending=True).numpy()
    first = [next(i for i, text in enumerate(row) if owner[text] == image) for image, row in enumerate(order)]
    assert list(ranks.image_to_text[0]) == list(ranks.image_to_text[1]) == [i + 1 for i in first]
    dense = recall.score_ranks((images @ texts.T).numpy(), owner)
    assert all(np.array_equal(a, b) for way, same in zip(ranks, dense) for a, b in zip(way, same))


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


def test_near_duplicates_are_neither_tied_nor_told_apart_by_rounding():
    """Images that are one picture tie with each other, whatever tiles their scores are computed in."""
    images = features(40, 64).repeat(30, 1)  # 1,200 rows: the copies are in different tiles
    ranks = recall.feature_ranks(images, images, np.arange(len(images)))
    assert (ranks.text_to_image[0] == 1).all() and (ranks.text_to_image[1] == 30).all()
    assert (ranks.image_to_text[0] == 1).all() and (ranks.image_to_text[1] == 30).all()


@pytest.mark.parametrize("side", [0, 1])
def test_features_that_are_no_numbers_find_nothing(side):
    """Every comparison with NaN is false: counted the other way, a broken model would find everything."""
    features = [torch.eye(4), torch.eye(4)]
    features[side] = torch.full((4, 4), torch.nan)
    metrics = recall.retrieval_metrics(*features, np.arange(4), ks=(1,))
    assert metrics["text_to_image_recall@1"] == metrics["image_to_text_recall@1"] == 0


def test_features_that_say_nothing_score_as_bad_as_can_be():
    """A collapsed model gives every pair the same score: recall is 0, and its optimistic twin says why."""
    metrics = recall.retrieval_metrics(torch.ones(20, 4) / 2, torch.ones(40, 4) / 2, np.arange(40) // 2)
    assert metrics["mean_recall"] == 0 and metrics["text_to_image_recall@1_optimistic"] == 100


def test_random_features_are_at_chance():
    """Of 500 images any rank is as likely as any other: recall at 10 is 2 % and the mean rank 250.5."""
    metrics = recall.retrieval_metrics(features(500, 16), features(2500, 16, seed=1), np.arange(2500) // 5)
    assert metrics["text_to_image_recall@10_low"] <= 2 <= metrics["text_to_image_recall@10_high"]
    assert abs(metrics["text_to_image_mean_rank"] - 250.5) < 15


def test_candidates_are_ranked_among_themselves_and_the_rest_stays_where_it_was():
    """Query 0: its match is second of its candidates; query 1 ties with one; query 2 has no match among them."""
    scores = np.array([[3.0, 2.0, 1.0], [5.0, 5.0, 0.0], [1.0, 1.0, 1.0]])
    match = np.array([[False, True, False], [True, False, False], [False, False, False]])
    best, worst = recall.candidate_ranks(scores, match, (np.array([9, 9, 7]), np.array([9, 9, 8])))
    assert best.tolist() == [2, 1, 7] and worst.tolist() == [2, 2, 8]
