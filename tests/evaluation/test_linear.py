"""Logistic regression against scikit-learn's, and the search for C."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from clip_vl.evaluation.linear import GRID, fit, probabilities, search_c


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("C", [0.05, 3.16])
def test_the_optimum_is_scikit_learns(classes, C):
    """Also of two classes, of which scikit-learn penalises one weight vector, and of features far from the origin."""
    rng = np.random.default_rng(0)
    labels = rng.integers(classes, size=300)
    features = (rng.normal(size=(300, 6)) * 2 + 5 + labels[:, None]).astype(np.float32)
    oracle = LogisticRegression(C=C, max_iter=10000, tol=1e-8).fit(features.astype(np.float64), labels)
    weight, bias = fit(torch.from_numpy(features), torch.from_numpy(labels), classes, C)
    found = probabilities(torch.from_numpy(features), weight, bias).numpy()
    np.testing.assert_allclose(found, oracle.predict_proba(features), atol=2e-3)


@pytest.mark.parametrize("peak", [0, 5, 50, 96])
def test_the_search_finds_the_peak_with_few_fits(peak):
    asked = []

    def evaluate(values):
        asked.extend(values)
        return [-abs(GRID.index(value) - peak) for value in values]

    C, scores = search_c(evaluate)
    assert pytest.approx(GRID[peak]) == C and len(asked) == len(set(asked)) == len(scores) <= 15


def test_of_equal_scores_the_strongest_penalty_is_taken():
    assert search_c(lambda values: [1.0] * len(values))[0] == GRID[0]
