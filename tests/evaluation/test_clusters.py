"""Agreement of clusters with classes, solved by hand; and k-means on what is easily told apart."""

import numpy as np
import pytest

from clip_vl.evaluation.clusters import agreement, best_matching, cluster, cluster_scores


def test_agreement_of_cases_solved_by_hand():
    labels = np.array([0, 0, 1, 1])
    assert agreement(np.array([5, 5, 2, 2]), labels) == pytest.approx({"AMI": 100, "NMI": 100, "ARI": 100})
    found = agreement(np.array([0, 1, 0, 1]), labels)
    assert found["NMI"] == pytest.approx(0, abs=1e-9) and found["ARI"] == pytest.approx(-50)  # 0 - 2/3 over 2 - 2/3


def test_a_matching_is_the_best_as_a_whole_not_cluster_by_cluster():
    """Greedy gives cluster 0 class 0 (3 images) and leaves 0 for cluster 1; the best pairs are worth 2 + 3."""
    clusters, labels = np.array([0] * 5 + [1] * 3), np.array([0, 0, 0, 1, 1, 0, 0, 0])
    assert best_matching(clusters, labels, 2, 2).tolist() == [1, 0]
    assert best_matching(clusters, labels, 3, 2).tolist()[2] == -1


def test_separable_features_cluster_perfectly():
    rng = np.random.default_rng(0)
    labels = np.arange(120) % 4
    clusters = cluster(np.eye(8)[labels] + rng.normal(size=(120, 8)) * 0.01, 4)
    scores, matched = cluster_scores(clusters, labels, 4, 4)
    assert scores["AMI"] == scores["ARI"] == scores["matched_accuracy"] == pytest.approx(100)
    assert (matched == labels).all() and scores["AMI_n"] == 120


def test_random_clusters_agree_by_chance_and_the_interval_holds_zero():
    rng = np.random.default_rng(0)
    scores, _ = cluster_scores(rng.integers(5, size=500), rng.integers(5, size=500), 5, 5)
    for name in ("AMI", "ARI"):
        assert scores[f"{name}_low"] < 0.2 and scores[f"{name}_high"] > -0.2 and abs(scores[name]) < 2
