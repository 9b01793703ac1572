"""GLUE's metrics against scikit-learn and SciPy, and the published means over minibatches."""

import numpy as np
import pytest

from clip_vl.evaluation.glue_scores import batch_mean_scores, glue_scores


def logits_of(predicted, classes=2):
    return np.eye(classes)[np.asarray(predicted)]


@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_scikit_learn_and_scipy(seed):
    from scipy import stats
    from sklearn import metrics

    rng = np.random.default_rng(seed)
    outputs, labels = rng.normal(size=(60, 2)), rng.integers(0, 2, 60)
    predicted = outputs.argmax(1)
    accuracy = 100 * metrics.accuracy_score(labels, predicted)
    assert glue_scores(outputs, labels, "accuracy") == {"accuracy": pytest.approx(accuracy)}
    expected = {"f1": 100 * metrics.f1_score(labels, predicted), "accuracy": accuracy}
    assert glue_scores(outputs, labels, "f1") == pytest.approx(expected)
    matthews = 100 * metrics.matthews_corrcoef(labels, predicted)
    assert glue_scores(outputs, labels, "matthews")["matthews"] == pytest.approx(matthews)
    scores, targets = rng.normal(size=60).round(1), rng.integers(0, 6, 60) + 0.2  # with ties
    found = glue_scores(scores, targets, "spearman")
    assert found["spearman"] == pytest.approx(100 * stats.spearmanr(scores, targets)[0])
    assert found["pearson"] == pytest.approx(100 * stats.pearsonr(scores, targets)[0])


def test_constant_predictions_have_the_score_zero():
    labels = np.array([0, 1, 1])
    assert glue_scores(logits_of([0, 0, 0]), labels, "f1")["f1"] == 0
    assert glue_scores(logits_of([1, 1, 1]), labels, "matthews")["matthews"] == 0
    assert glue_scores(np.ones(3), labels, "spearman") == {"spearman": 0, "pearson": 0}


def test_wnli_is_45_07_and_was_published_as_45_04():
    """71 pairs, 29 of the first 64 right and 3 of the last 7; batches of 8: the published mean over nine batches."""
    right = [5, 3, 4, 2, 5, 4, 3, 3]  # 29 of 64
    hits = np.concatenate([np.arange(8) < n for n in right] + [np.arange(7) < 3])
    labels = np.arange(71) % 2
    outputs = logits_of(np.where(hits, labels, 1 - labels))
    assert glue_scores(outputs, labels, "accuracy")["accuracy"] == pytest.approx(45.07, abs=0.005)
    assert batch_mean_scores(outputs, labels, "accuracy", 8)["accuracy_batch_mean"] == pytest.approx(45.04, abs=0.005)


def test_batch_means_take_the_fraction_from_targets_and_count_every_batch_alike():
    labels = np.array([1.9, 0.4, 3.5, 3.2, 2.0])
    outputs = np.array([0.3, 0.1, 0.2, 0.6, 0.4])
    first = glue_scores(outputs[:3], np.array([1, 0, 3]), "spearman")["spearman"]
    last = glue_scores(outputs[3:], np.array([3, 2]), "spearman")["spearman"]
    found = batch_mean_scores(outputs, labels, "spearman", 3)["spearman_batch_mean"]
    assert found == pytest.approx((first + last) / 2)
