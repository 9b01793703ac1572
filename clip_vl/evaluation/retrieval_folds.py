"""Retrieval in folds of the images: ranks by features, by scores of all pairs or of the nearest ones; metrics."""

import numpy as np
import torch

from clip_vl.evaluation.recall import WAYS, Ranks, candidate_ranks, feature_ranks, metrics_of_ranks, score_ranks

TOP = 5  # candidates of each query in the report


class Fold:
    """A part of the images with their texts: their ranks, and who is nearest to a query. Places are those in the fold.

    images, texts: their places in the pairs;  image_of_text: (m,);  ranks: `Ranks`
    nearest: (way, queries) -> (places, scores) of the top five, (q, 5) each
    """

    def __init__(self, pairs, first, last):
        self.images, self.texts = np.arange(first, last), pairs.texts_of(first, last)
        self.image_of_text = pairs.image_of_text[self.texts] - first
        self.ranks = self.nearest = None


def rank_by_features(fold, images, texts):
    """By cosine similarity; images (N, D), texts (M, D) of all pairs."""
    images, texts = (torch.from_numpy(np.ascontiguousarray(f)) for f in (images[fold.images], texts[fold.texts]))
    fold.ranks = feature_ranks(images, texts, fold.image_of_text)

    def nearest(way, queries):
        query, others = (texts, images) if way == "text_to_image" else (images, texts)
        return best_of((query[torch.from_numpy(queries)] @ others.T).numpy())

    fold.nearest = nearest
    return images, texts


def rank_all_pairs(fold, pairs, score):
    """By the scores of all pairs of the fold. score: sorted keys image * M + text, or None for all -> scores."""
    n, m = len(fold.images), len(fold.texts)
    keys = None if n == len(pairs.rows) else (fold.images[:, None] * len(pairs.numbers) + fold.texts[None]).ravel()
    scores = score(keys).reshape(n, m)
    fold.ranks = score_ranks(scores, fold.image_of_text)
    fold.nearest = lambda way, q: best_of(scores[:, q].T if way == "text_to_image" else scores[q])


def rerank(fold, pairs, images, texts, k, score):
    """The k nearest of each query by the dual encoder in the order of the fused one; all others stay behind them."""
    from clip_vl.evaluation.neighbours.exact import sharded_top_k

    images, texts = rank_by_features(fold, images, texts)
    k = {"text_to_image": min(k, len(images)), "image_to_text": min(k, len(texts))}
    near_images = sharded_top_k(texts, images, k["text_to_image"]).rows.numpy()  # (m, k)
    near_texts = sharded_top_k(images, texts, k["image_to_text"]).rows.numpy()  # (n, k)
    every_text, every_image = np.arange(len(texts))[:, None], np.arange(len(images))[:, None]
    M = len(pairs.numbers)
    wanted = [
        fold.images[near_images] * M + fold.texts[every_text],
        fold.images[every_image] * M + fold.texts[near_texts],
    ]
    every = np.unique(np.concatenate([keys.ravel() for keys in wanted]))
    scores = score(every)
    by_text, by_image = (scores[np.searchsorted(every, keys)] for keys in wanted)
    owner = fold.image_of_text
    fold.ranks = Ranks(
        candidate_ranks(by_text, near_images == owner[:, None], fold.ranks.text_to_image),
        candidate_ranks(by_image, owner[near_texts] == every_image, fold.ranks.image_to_text),
    )
    found = {"text_to_image": (by_text, near_images), "image_to_text": (by_image, near_texts)}

    def nearest(way, queries):
        scores, candidates = (each[queries] for each in found[way])
        places, best = best_of(scores)
        return np.take_along_axis(candidates, places, 1), best

    fold.nearest = nearest


def best_of(scores):
    """(places, scores) of the top five of each row, (q, 5)."""
    places = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
    return places, np.take_along_axis(scores, places, 1)


def metrics_of(folds):
    """The metrics of `evaluation.recall`; of several folds the mean, with intervals over all queries."""
    each = [metrics_of_ranks(fold.ranks, fold.image_of_text) for fold in folds]
    if len(each) == 1:
        return each[0]
    ranks = Ranks(*(tuple(map(np.concatenate, zip(*(getattr(f.ranks, way) for f in folds)))) for way in WAYS))
    starts = np.cumsum([0, *(len(fold.images) for fold in folds)])
    owner = np.concatenate([fold.image_of_text + start for fold, start in zip(folds, starts)])
    together = metrics_of_ranks(ranks, owner)
    counted = ("_n", "_low", "_high", "_ties")
    mean = {
        name: float(np.mean([m.get(name, m.get(name.removesuffix("_optimistic"))) for m in each])) for name in together
    }
    return mean | {name: value for name, value in together.items() if name.endswith(counted)} | {"folds": len(each)}
