"""The modality gap by hand, and against all pairs written out."""

import numpy as np
import pytest

from clip_vl.evaluation.modality_gap import modality_gap


def test_two_images_and_two_texts_by_hand():
    """Means (0.5, 0.5) and (0, 1): the gap is sqrt(0.5); both texts are (0, 1), which is the second image."""
    found = modality_gap(np.eye(2), np.array([[0, 1], [0, 1]]), np.array([0, 1]))
    assert found["modality_gap"] == pytest.approx(0.5**0.5) and found["positive_similarity"] == 0.5
    assert (found["image_self_similarity"], found["text_self_similarity"]) == (0, 1)
    assert (found["image_std"], found["text_std"]) == (0.5, 0)


def test_self_similarity_is_the_mean_over_all_pairs(monkeypatch):
    monkeypatch.setattr("clip_vl.evaluation.modality_gap.BLOCK", 5)
    rng = np.random.default_rng(0)
    images, texts = rng.normal(size=(9, 4)), rng.normal(size=(12, 4))
    images, texts = (features / np.linalg.norm(features, axis=1, keepdims=True) for features in (images, texts))
    owner = rng.integers(9, size=12)
    found = modality_gap(images.astype(np.float32), texts.astype(np.float32), owner)
    for side, features in (("image", images), ("text", texts)):
        pairs = (features @ features.T)[~np.eye(len(features), dtype=bool)]
        assert found[f"{side}_self_similarity"] == pytest.approx(pairs.mean(), abs=1e-6)
    assert found["positive_similarity"] == pytest.approx(
        np.mean([images[i] @ t for i, t in zip(owner, texts)]), abs=1e-6
    )
    assert np.isnan(modality_gap(images[:1], texts[:2], np.zeros(2, int))["image_self_similarity"])
