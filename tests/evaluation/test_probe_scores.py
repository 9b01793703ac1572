"""Verdicts against hand-solved cases, tie rules, thresholds, means of groups and intervals over pictures."""

import itertools

import numpy as np
import pytest

from clip_vl.datasets.probes.items import Row
from clip_vl.evaluation.bootstrap import clustered_interval
from clip_vl.evaluation.probe_scores import calibrate, cross_fitted, fold_of, table_row, verdict_on


def row_of(verdicts, groups=None, weights=None, metric="accuracy", tie="wrong", clusters=None):
    of = groups or [("g",)] * len(verdicts)
    names = tuple(dict.fromkeys(g for gs in of for g in gs))
    return table_row(Row("r", metric, names, weights), verdicts, of, clusters or list(range(len(of))), tie)


@pytest.mark.parametrize(
    "block, text, image",
    [
        ([[0.9, 0.1], [0.2, 0.8]], 1, 1),
        ([[0.5, 0.4], [0.6, 0.7]], 1, 0),  # caption 0 prefers image 1
        ([[0.5, 0.6], [0.4, 0.7]], 0, 1),  # image 0 prefers caption 1
        ([[0.1, 0.9], [0.8, 0.2]], 0, 0),
        ([[0.5, 0.5], [0.1, 0.9]], 0, 1),  # a tie of captions is wrong
        ([[0.5, 0.1], [0.5, 0.9]], 1, 0),  # a tie of pictures is wrong
        ([[0.5, 0.5], [0.5, 0.5]], 0, 0),
    ],
)
def test_winoground_by_its_definition(block, text, image):
    verdict = verdict_on("winoground", block)
    assert [verdict.right[name][0] for name in ("text", "image", "group")] == [text, image, text and image]
    assert verdict.tie == (len({*block[0], *block[1]}) < 4)


def test_winoground_chance_is_that_of_all_orders():
    verdicts = [verdict_on("winoground", np.reshape(order, (2, 2))) for order in itertools.permutations(range(4))]
    for metric, chance in (("text", 25), ("image", 25), ("group", 100 / 6)):
        row = row_of(verdicts, metric=metric)
        assert row["score"] == pytest.approx(chance, abs=1e-4) and row["chance"] == pytest.approx(chance, abs=1e-4)


def test_ties_count_by_the_rule():
    verdicts = [verdict_on("captions", [[score, 0.5]]) for score in (0.5, 0.6, 0.4)]
    for tie, score in (("wrong", 100 / 3), ("right", 200 / 3)):
        row = row_of(verdicts, tie=tie)
        assert row["score"] == pytest.approx(score) and row["pessimistic"] == pytest.approx(100 / 3, abs=1e-4)
        assert (row["ties"], row["n"], row["chance"]) == (1, 3, 50)


def test_ranks_count_every_negative_that_is_as_high():
    verdict = verdict_on("captions", [[0.5, 0.7, 0.5, 0.1, 0.5, 0.2]])
    assert (verdict.rank, verdict.best_rank, verdict.tie) == (4, 2, True)
    got = {metric: row_of([verdict], metric=metric) for metric in ("R@1", "R@3", "R@5", "mean rank")}
    assert [got[m]["score"] for m in ("R@1", "R@3", "R@5", "mean rank")] == [0, 0, 100, 4]
    assert got["R@1"]["chance"] == pytest.approx(100 / 6, abs=1e-4) and got["mean rank"]["chance"] == 3.5


@pytest.mark.parametrize("tie", ["wrong", "right"])
def test_what_is_not_a_number_is_never_right(tie):
    """A model that overflows would otherwise be perfect: nothing is above a true side that is not a number."""
    nan = float("nan")
    verdicts = [*(verdict_on("captions", [pair]) for pair in ([nan, 0.5], [0.5, nan], [nan, nan])),
                verdict_on("images", [[nan], [nan]])]  # fmt: skip
    assert [verdict.rank for verdict in verdicts] == [2, 2, 2, 2] and row_of(verdicts, tie=tie)["score"] == 0
    assert row_of([verdict_on("match", [[nan]], gold) for gold in (0, 1)], tie=tie)["score"] == 0
    wino = verdict_on("winoground", [[nan, nan], [nan, nan]])
    assert [row_of([wino], metric=metric, tie=tie)["score"] for metric in ("text", "image", "group")] == [0, 0, 0]


def test_two_pictures_of_one_sentence():
    verdicts = [verdict_on("images", [[0.5], [0.4]]), verdict_on("images", [[0.5], [0.5]])]
    assert row_of(verdicts)["score"] == 50 and verdicts[1].tie


def test_macro_and_micro_means():
    """Group a has 1 of 1 right, group b 1 of 3."""
    verdicts = [verdict_on("captions", [[s, 0.5]]) for s in (0.9, 0.9, 0.1, 0.1)]
    groups = [("a",), ("b",), ("b",), ("b",)]
    assert row_of(verdicts, groups)["score"] == 50
    assert row_of(verdicts, groups, (0.5, 0.5))["score"] == pytest.approx(100 * (1 + 1 / 3) / 2, abs=1e-4)


def test_decisions_agree_with_scikit_learn():
    from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

    rng = np.random.default_rng(0)
    scores, labels = rng.random(60), rng.integers(2, size=60)
    verdicts = [verdict_on("match", [[s]], gold, 0.6) for s, gold in zip(scores.astype(np.float32), labels)]
    wanted = {"accuracy": accuracy_score, "precision": precision_score, "recall": recall_score, "F1": f1_score}
    for metric, oracle in wanted.items():
        expected = 100 * oracle(labels, scores.astype(np.float32) > 0.6)
        assert row_of(verdicts, metric=metric)["score"] == pytest.approx(expected, abs=1e-4)


def test_a_threshold_is_the_best_one_and_comes_from_the_other_fold():
    scores, labels = np.array([0.1, 0.2, 0.3, 0.8, 0.9]), np.array([0, 0, 0, 1, 1])
    assert calibrate(scores, labels) == pytest.approx(0.55)
    folds = np.array([0, 0, 0, 1, 1, 1, 1])
    got = cross_fitted(np.array([0.1, 0.2, 0.9, 5.0, 6.0, 7.0, 8.0]), np.array([0, 0, 1, 0, 0, 1, 1]), folds)
    assert got[:3].tolist() == [6.5] * 3 and got[3:] == pytest.approx([0.55] * 4)
    assert {fold_of(str(i)) for i in range(20)} == {0, 1}


@pytest.mark.parametrize("fold", [0, 1])
def test_with_one_fold_alone_its_own_cases_make_the_threshold(fold):
    """The other fold has no case to say anything: 0 would take every positive cosine for a match."""
    got = cross_fitted(np.array([0.1, 0.2, 0.8, 0.9]), np.array([0, 0, 1, 1]), np.array([fold] * 4))
    assert got == pytest.approx([0.5] * 4) and len(cross_fitted([], [], [])) == 0


def test_scores_that_are_not_numbers_move_no_threshold():
    nan = float("nan")
    assert calibrate([0.3, nan, nan, nan, 0.1, 0.35], [1, 1, 1, 1, 0, 0]) == pytest.approx(0.2)


def test_the_interval_draws_pictures_and_not_items():
    """Forty items of four pictures say no more than four items: the interval is that of `clustered_interval`."""
    verdicts = [verdict_on("captions", [[float(i < 20), 0.5]]) for i in range(40)]
    clusters = [str(i // 10) for i in range(40)]
    row = row_of(verdicts, clusters=clusters)
    low, high = clustered_interval([i < 20 for i in range(40)], np.arange(40) // 10)
    assert row["low"] == pytest.approx(100 * low, abs=13) and row["high"] == pytest.approx(100 * high, abs=13)
    alone = row_of(verdicts)
    assert row["low"] < alone["low"] - 10 and row["high"] > alone["high"] + 10


def test_nothing_to_score_is_no_number():
    row = table_row(Row("r", "accuracy", ("g",)), [], [], [])
    assert row["n"] == 0 and row["score"] is None
