"""Scores of classifications against scikit-learn and cases solved by hand."""

import numpy as np
import pytest
from sklearn import metrics

from clip_vl.engine.errors import DataError
from clip_vl.evaluation import class_scores as ours


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    labels = rng.choice(7, size=300, p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05])
    scores = rng.normal(size=(300, 7)).astype(np.float32)
    scores[np.arange(300), labels] += 1.5
    return scores, labels


def test_accuracy_and_mean_per_class_are_scikit_learns(case):
    scores, labels = case
    found = ours.class_scores(scores, labels)
    predictions = scores.argmax(1)
    assert found["accuracy"] == pytest.approx(100 * metrics.accuracy_score(labels, predictions))
    assert found["mean_per_class"] == pytest.approx(100 * metrics.balanced_accuracy_score(labels, predictions))
    assert found["accuracy_top5"] == pytest.approx(100 * metrics.top_k_accuracy_score(labels, scores, k=5))
    for name in ("accuracy", "mean_per_class", "accuracy_top5"):
        assert found[f"{name}_low"] < found[name] < found[f"{name}_high"] and found[f"{name}_n"] == 300
    assert next(iter(ours.class_scores(scores, labels, "mean_per_class"))) == "mean_per_class"
    assert ours.headline_score(scores, labels, "mean_per_class") == found["mean_per_class"]


def test_ties_go_to_the_lower_class_and_are_said():
    scores, labels = np.array([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), np.array([0, 1, 1, 1])
    found = ours.class_scores(scores, labels)
    assert found["accuracy"] == 50.0 and ours.top_ties(scores) == 2
    assert (found["accuracy_pessimistic"], found["accuracy_optimistic"]) == (25.0, 75.0)


def test_auc_is_scikit_learns_with_ties_counting_half():
    rng = np.random.default_rng(1)
    labels = rng.integers(2, size=200)
    scores = np.round(rng.normal(size=200) + labels, 1)
    assert ours.roc_auc(scores, labels) == pytest.approx(metrics.roc_auc_score(labels, scores))
    found = ours.class_scores(np.stack([-scores, scores], 1), labels, "auc")
    assert found["auc_low"] < found["auc"] < found["auc_high"]


def test_eleven_point_precision_of_a_case_solved_by_hand():
    """Ranks 1 and 3 of 4 are right: precision 1 up to recall 0.5 (6 points), then 2/3 (5 points)."""
    labels = np.array([True, False, True, False])
    assert ours.average_precision11(np.array([4.0, 3.0, 2.0, 1.0]), labels) == pytest.approx((6 + 5 * 2 / 3) / 11)
    assert ours.average_precision11(np.zeros(4), labels) == pytest.approx(0.5)  # all enter together


@pytest.mark.parametrize("form, expected", [("voc", 50.0), ("elevater", 600 / 11)])
def test_elevaters_form_starts_at_a_precision_of_one(form, expected):
    scores, labels = np.array([[0.9, 0.8, 0.1, 0.0]]).T, np.array([[False, True, False, False]]).T
    assert ours.class_scores(scores, labels, "mAP11", map11=form)["mAP11"] == pytest.approx(expected)


def test_elevaters_form_is_that_of_its_toolkit():
    """shared/data/golden: 60 images with ties; softmax(5 S); a class without positives. VOC's: 0.3011."""
    rng = np.random.RandomState(101)
    scores = rng.rand(60, 7).round(3)
    rng.randint(7, size=60), rng.rand(60, 2), rng.randint(2, size=60)
    labels = rng.rand(60, 7) < 0.25
    assert labels.sum(0).tolist() == [10, 12, 12, 19, 14, 16, 12]
    assert ours.mean_ap11(scores, labels, "elevater") == pytest.approx(0.3391241, abs=1e-7)
    assert ours.mean_ap11(scores, labels) == pytest.approx(0.3011, abs=5e-5)
    softmax = np.exp(5 * scores) / np.exp(5 * scores).sum(1, keepdims=True)
    assert ours.mean_ap11(softmax, labels, "elevater") == pytest.approx(0.3362182, abs=1e-7)
    labels[:, 4] = False
    assert ours.mean_ap11(scores, labels, "elevater") == pytest.approx(0.3445405, abs=1e-7)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_no_class_without_votes_is_among_the_top_five(k):
    """DINO looks at the first min(5, k) classes; behind those with votes, the first class numbers would fill up."""
    scores = np.zeros((8, 8))
    for image in range(8):
        scores[image, (image + np.arange(k)) % 8] = np.arange(k, 0, -1) / (k * (k + 1) / 2)
    labels = np.zeros(8, int)
    assert ours.class_scores(scores, labels, votes=True)["accuracy_top5"] == 100 * k / 8


def test_confident_probabilities_keep_their_order():
    """Logits of 20 and 25 are both a probability of 1.0 in float32; what the other class has left tells them apart."""
    logits = np.array([20.0, 25.0, 22.0, 28.0])
    other = (1 / (1 + np.exp(logits))).astype(np.float32)
    scores = np.stack([other, (1 - other).astype(np.float32)], 1)
    labels = np.array([0, 1, 0, 1])
    assert len(set(scores[:, 1])) == 1 and ours.headline_score(scores, labels, "auc") == 100
    assert ours.class_scores(scores, labels, "auc")["auc"] == 100


def test_scores_that_are_not_numbers_are_no_result():
    """argmax takes the first class where nothing is a number: an accuracy as good as its share of the images."""
    scores = np.full((4, 3), 1.0)
    scores[1] = np.nan
    with pytest.raises(DataError, match="the scores of 1 of 4 images are not numbers"):
        ours.class_scores(scores, np.zeros(4, int))
