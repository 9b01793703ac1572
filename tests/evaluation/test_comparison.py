"""Paired comparisons against scipy and cases solved by hand."""

import numpy as np
import pytest

from clip_vl.evaluation.comparison import compare, mcnemar


@pytest.mark.parametrize("lost, won", [(0, 0), (0, 1), (1, 1), (3, 9), (9, 3), (40, 71), (1500, 1400), (3, 12000)])
def test_mcnemar_is_the_exact_binomial_test(lost, won):
    from scipy.stats import binomtest

    expected = binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)


def test_five_against_none_by_hand():
    """2 * (1/2)^5 = 1/16."""
    found = compare([0] * 5 + [1] * 3, [1] * 5 + [1] * 3)
    assert (found["lost"], found["won"], found["mcnemar_p"]) == (0, 5, 0.0625)
    assert (found["first"], found["second"], found["difference"], found["n"]) == (37.5, 100.0, 62.5, 8)


def test_the_interval_is_that_of_scipys_paired_bootstrap():
    from scipy.stats import bootstrap

    rng = np.random.default_rng(0)
    first = rng.random(400) < 0.5
    second = np.where(rng.random(400) < 0.8, first, ~first)
    found = compare(first, second)
    expected = bootstrap((first * 100.0, second * 100.0), lambda a, b, axis: (b - a).mean(axis), paired=True,
                         vectorized=True, n_resamples=4000, method="percentile", rng=1).confidence_interval  # fmt: skip
    assert found["low"] == pytest.approx(expected.low, abs=0.6) and found["high"] == pytest.approx(
        expected.high, abs=0.6
    )


def test_pairing_is_what_finds_a_small_steady_difference():
    """Apart, two scores of 50 and 53 % of 1,000 have intervals that overlap; none of the samples got worse."""
    first = np.arange(1000) < 500
    found = compare(first, np.arange(1000) < 530)
    assert found["low"] > 0 and found["lost"] == 0 and found["mcnemar_p"] < 1e-8


def test_captions_of_one_image_are_one_observation():
    """Ten images whose ten captions change together: the interval is that of ten coins."""
    change = np.repeat(np.arange(10) % 2, 10)
    alone, together = (
        compare(0 * change, change),
        compare(0 * change, change, clusters=np.repeat(list("abcdefghij"), 10)),
    )
    assert together["high"] - together["low"] > 2.5 * (alone["high"] - alone["low"])


def test_scores_between_0_and_1_have_no_mcnemar_test():
    found = compare([0.3, 0.6, 1.0], [0.3, 0.9, 1.0])
    assert "mcnemar_p" not in found and found["difference"] == pytest.approx(10)
