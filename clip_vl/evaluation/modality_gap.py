"""How far apart images and texts lie in the joint space, and how much of it each side uses (arXiv:2203.02053)."""

import numpy as np

BLOCK = 65536  # rows that are in memory as float64


def modality_gap(images, texts, image_of_text):
    """Of L2-normalised features images (N, D), texts (M, D) and the image (M,) of each text, a flat dict:

    modality_gap:          length of the difference of the two sides' means, 0 to 2
    positive_similarity:   mean cosine of a text and its image
    image_self_similarity, text_self_similarity: mean cosine of two different ones of a side; NaN of fewer than two
    image_std, text_std:   mean over the D numbers of their standard deviation
    """
    found, means = {}, []
    for side, features in (("image", images), ("text", texts)):
        N, total, squares = len(features), *_sums(features)
        means.append(total / N)
        # The sum over all pairs is the squared length of the sum: no (N, N) matrix is needed.
        pairs = N * (N - 1)
        found[f"{side}_self_similarity"] = float((total @ total - squares.sum()) / pairs) if pairs else float("nan")
        found[f"{side}_std"] = float(np.sqrt(np.maximum(squares / N - means[-1] ** 2, 0)).mean())
    own = sum(np.vdot(images[image_of_text[part]], texts[part]) for part in _blocks(texts)) / len(texts)
    return {"modality_gap": float(np.linalg.norm(means[0] - means[1])), "positive_similarity": float(own)} | found


def _sums(features):
    """(D,) sums of the features and of their squares, float64."""
    total, squares = np.zeros((2, features.shape[1]))
    for part in _blocks(features):
        block = features[part].astype(np.float64)
        total += block.sum(0)
        squares += np.square(block).sum(0)
    return total, squares


def _blocks(features):
    return [slice(start, start + BLOCK) for start in range(0, len(features), BLOCK)]
