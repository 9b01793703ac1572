"""The bootstrap interval against the normal approximation, direct resampling and its own repetition."""

import numpy as np
import pytest

from clip_vl.evaluation.bootstrap import interval


def test_interval_approaches_the_normal_one_for_many_values():
    values = np.random.default_rng(1).choice([0, 0.3, 0.6, 0.9, 1.0], size=5000)
    error = 1.96 * values.std() / len(values) ** 0.5
    assert interval(values) == pytest.approx((values.mean() - error, values.mean() + error), abs=0.1 * error)


def test_counting_distinct_values_equals_resampling_the_values():
    """The reference draws rows with replacement, value by value; both intervals estimate the same percentiles."""
    rng = np.random.default_rng(2)
    values = rng.random(40)
    means = rng.choice(values, size=(20000, 40)).mean(axis=1)
    assert interval(values) == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.015)


def test_same_values_give_the_same_interval_in_any_order_and_another_seed_another():
    values = np.random.default_rng(3).random(100)
    assert interval(values) == interval(values[::-1])
    assert interval(values, seed=1) != interval(values)


def test_equal_values_have_no_width():
    assert interval([0.5] * 7) == (0.5, 0.5)
