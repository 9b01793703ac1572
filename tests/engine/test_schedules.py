"""Schedules against the golden learning rates of the published code."""

import pytest

from clip_vl.engine.schedules import cosine, linear_to

COSINE = {0: 0.0, 1: 4.545455e-06, 34: 0.0001545455, 43: 0.0001954545, 44: 2e-4, 100: 0.0001902927, 300: 5.559334e-05,
          349: 2.494694e-05}  # fmt: skip
LINEAR = {0: 0.0, 1: 3.921569e-07, 50: 1.960784e-05, 51: 2e-05, 100: 1.788022e-05, 157: 1.541435e-05, 600: 1e-7}


def test_the_cosine_rises_to_the_base_rate_and_falls_to_zero():
    factor = cosine(440, 0.1)
    assert {step: 2e-4 * factor(step) for step in COSINE} == pytest.approx(COSINE, rel=1e-6)
    assert factor(440) == factor(500) == 0


def test_the_line_ends_at_its_last_rate():
    factor = linear_to(511, 0.1, end=1e-7 / 2e-5)
    assert {step: 2e-5 * factor(step) for step in LINEAR} == pytest.approx(LINEAR, rel=1e-6)
