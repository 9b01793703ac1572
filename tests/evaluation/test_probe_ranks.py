"""Ranks of files, against a case solved by hand and the published formulas for ranks that begin at 0."""

import numpy as np
import pytest

from clip_vl.datasets.probes.items import Crop, Item, Probe, Row
from clip_vl.evaluation.probe_ranks import rank_facts
from clip_vl.evaluation.probe_scores import verdict_on


def judged_of(blocks, subset):
    item = Item("i", (subset,), (Crop("1"),), ("a",) * 6)
    return [(item, [0], block, verdict_on("captions", block)) for block in blocks]


def probe_of(metric):
    return Probe("p", "captions", "wrong", [], [Row("f/4", metric, ("f/4",))])


def test_four_items_by_hand():
    """Ranks 1, 2 (a tie counts against), 4 and 6: half of them are within three, the median lies between 2 and 4."""
    blocks = [[[9, 1, 2, 3, 4, 5]], [[5, 5, 1, 1, 1, 1]], [[3, 4, 5, 6, 1, 2]], [[0, 1, 2, 3, 4, 5]]]
    facts = rank_facts(probe_of("R@1"), judged_of(blocks, "f/4"))["ranks"]["f/4"]
    assert [facts[f"R@{k}"] for k in (1, 3, 5, 10)] == [25, 50, 75, 100] and facts["n"] == 4
    assert facts["R@1 std"] == pytest.approx(100 * (0.25 * 0.75) ** 0.5, abs=1e-4) and facts["R@10 std"] == 0
    assert facts["mean rank"] == 3.25 and facts["median rank"] == 3


def test_the_published_formulas_on_random_scores():
    """Of scores without ties: floor(median of ranks from 0) + 1, and the mean plus 1, for each file by itself."""
    rng = np.random.default_rng(0)
    scores = {name: rng.random((count, 6)) for name, count in (("a/4", 31), ("b/5", 40))}
    judged = [entry for name, of in scores.items() for entry in judged_of(of[:, None], name)]
    facts = rank_facts(probe_of("R@1"), judged)["ranks"]
    for name, of in scores.items():
        places = np.where(np.argsort(-of, axis=1) == 0)[1]
        assert facts[name]["median rank"] == np.floor(np.median(places)) + 1
        assert facts[name]["mean rank"] == pytest.approx(places.mean() + 1, abs=1e-5)
        for k in (1, 3, 5, 10):
            assert facts[name][f"R@{k}"] == pytest.approx(100 * np.mean(places < k), abs=1e-5)
            assert facts[name][f"R@{k} std"] == pytest.approx(100 * np.std(places < k), abs=1e-5)


def test_a_probe_without_ranks_has_no_such_facts():
    assert rank_facts(probe_of("accuracy"), judged_of([[[2, 1]]], "f/4")) == {}
