"""k-NN votes against scikit-learn's classifier with the same weights."""

import numpy as np
import pytest
import torch
from sklearn.neighbors import KNeighborsClassifier

from clip_vl.engine.errors import UserError
from clip_vl.evaluation.neighbours.knn import knn_scores


@pytest.mark.parametrize("n, temperature", [(1, 0.07), (70, 0.07), (70, 1e-4)])
def test_votes_are_scikit_learns(n, temperature):
    """Any number of test images, also fewer than a hundred; a small temperature overflows nothing."""
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(200, 16, generator=generator), torch.randn(n, 16, generator=generator)
    labels = torch.randint(5, (200,), generator=generator)

    def weights(distances):
        cosines = 1 - distances
        return np.exp((cosines - cosines.max(1, keepdims=True)) / temperature)

    oracle = KNeighborsClassifier(20, weights=weights, metric="cosine", algorithm="brute").fit(train, labels)
    found = knn_scores(train, labels, test, 5, 20, temperature).numpy()
    np.testing.assert_allclose(found, oracle.predict_proba(test), atol=2e-3 if temperature < 0.01 else 1e-5)


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(UserError, match="20 neighbours of 5 rows"):
        knn_scores(torch.ones(5, 2), torch.zeros(5).long(), torch.ones(1, 2), 1)
