"""Metrics over folds, and what the gallery shows, by hand."""

from types import SimpleNamespace

import numpy as np
import pytest

from clip_vl.evaluation.recall import Ranks
from clip_vl.evaluation.retrieval_folds import best_of, metrics_of
from clip_vl.reports.retrieval import choose_queries


def fold(text_ranks, image_ranks, owner):
    ranks = Ranks((np.array(text_ranks),) * 2, (np.array(image_ranks),) * 2)
    return SimpleNamespace(ranks=ranks, image_of_text=np.array(owner), images=np.arange(len(image_ranks)))


def test_the_score_of_folds_is_their_mean_and_not_that_of_their_queries():
    """Two images each, but one fold has three texts and the other two: 1/3 and 1/2 are right, in the mean 5/12."""
    found = metrics_of([fold([1, 2, 2], [1, 1], [0, 0, 1]), fold([1, 2], [1, 2], [0, 1])])
    assert found["text_to_image_recall@1"] == pytest.approx(500 / 12) and found["folds"] == 2
    assert found["image_to_text_recall@1"] == 75 and found["text_to_image_recall@1_n"] == 5
    assert found["text_to_image_recall@1_low"] <= 500 / 12 <= found["text_to_image_recall@1_high"]


def test_ties_of_one_fold_count_in_the_optimistic_mean():
    """In the first fold both texts tie (rank 1 or 2), in the second nothing does: optimistic (100 + 0) / 2."""
    tied = fold([2, 2], [1, 1], [0, 1])
    tied.ranks = Ranks((np.array([1, 1]), np.array([2, 2])), tied.ranks.image_to_text)
    found = metrics_of([tied, fold([2, 2], [1, 1], [0, 1])])
    assert found["text_to_image_recall@1"] == 0 and found["text_to_image_recall@1_optimistic"] == 50
    assert found["text_to_image_ties"] == 2


def test_the_gallery_takes_the_best_and_the_worst():
    ranks = np.array([5, 1, 9, 3, 7, 2])
    assert choose_queries(ranks, 4).tolist() == [1, 5, 2, 4]
    assert len(choose_queries(ranks, 1)) == 1 and len(choose_queries(ranks, 100)) == 6


def test_of_equal_scores_the_lower_place_comes_first():
    places, scores = best_of(np.array([[1.0, 3.0, 3.0, 2.0]]))
    assert places.tolist() == [[1, 2, 3, 0]] and scores.tolist() == [[3.0, 3.0, 2.0, 1.0]]
