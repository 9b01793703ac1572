"""The published retrieval score: golden values, and a matrix that is scored by hand."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_vl.evaluation.published_retrieval import published_scores

GOLDEN = Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data")) / "golden" / "dev_smke.json"


def unit(rows):
    return torch.nn.functional.normalize(torch.from_numpy(np.asarray(rows, np.float32)), dim=1)


@pytest.mark.skipif(not GOLDEN.exists(), reason="CLIP_VL_REAL_DATA has no golden/dev_smke.json")
def test_scores_are_those_of_the_published_code():
    rng = np.random.RandomState(11)
    base, rows = rng.randn(50, 8), []
    for i in range(50):
        rows += [(base[i] + 1.3 * rng.randn(8), base[i], 1000 - 3 * i) for _ in range(6 if i % 7 == 3 else 5)]
    rows = [rows[place] for place in rng.permutation(len(rows))]
    texts, images, ids = (np.array(part) for part in zip(*rows))
    found = published_scores(unit(images), unit(texts), ids, amr=True)
    expected = json.loads(GOLDEN.read_text())["retrieval_scores"]["scores"]
    assert found == pytest.approx(expected, rel=1e-5)


def test_two_images_with_five_captions_each_are_scored_by_hand():
    """Captions of image 7: four point to it and one to image 3; those of image 3 all point to image 7."""
    x, y = [1.0, 0.0], [0.0, 1.0]
    images = [x] * 5 + [y] * 5
    texts = [[1, 0.1], [1, 0.2], [1, 0.3], [1, 0.4], [0.1, 1], [1, 0.5], [1, 0.6], [1, 0.7], [1, 0.8], [1, 0.9]]
    found = published_scores(unit(images), unit(texts), [7] * 5 + [3] * 5)
    assert {k: v for k, v in found.items() if "ir" in k} == {"ir_r1": 40, "ir_r5": 100, "ir_r10": 100}
    assert {k: v for k, v in found.items() if "tr" in k} == {"tr_r1": 50, "tr_r5": 100, "tr_r10": 100}
    assert found["average_score"] == pytest.approx((40 + 100 + 100 + 50 + 100 + 100) / 6)


def test_the_median_rank_needs_five_captions_of_every_image():
    with pytest.raises(ValueError, match="5 captions"):
        published_scores(unit(np.eye(4)), unit(np.eye(4)), [0, 0, 1, 1], amr=True)
