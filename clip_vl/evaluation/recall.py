"""Retrieval between images and texts: exact ranks in tiles, recall at K, ties stated.

A query's rank is 1 + how many others score above its best-scoring match; with ties the pessimistic rank also counts the
others that score the same, and whatever is not a number. The match's score and its competitors' come out of the same
product: computed apart they differ in the last bits, and near-duplicates would tie or not by accident.
"""

from threading import Lock
from typing import NamedTuple

import numpy as np
import torch

from clip_vl.engine import dist
from clip_vl.evaluation.bootstrap import clustered_interval
from clip_vl.evaluation.neighbours.tiles import count_columns, count_rows, full_precision, one_thread_each, product

TILES = {"cpu": (256, 1024), "cuda": (4096, 8192)}  # images, texts of one product: 1 MiB of scores stays in the cache
WAYS = ("text_to_image", "image_to_text")


class Ranks(NamedTuple):
    """(optimistic, pessimistic) int64 arrays: of each text's image, (M,), and of each image's best text, (N,)."""

    text_to_image: tuple
    image_to_text: tuple


def retrieval_metrics(image_features, text_features, image_of_text, ks=(1, 5, 10)):
    """`metrics_of_ranks` of `feature_ranks`; arguments as there."""
    return metrics_of_ranks(feature_ranks(image_features, text_features, image_of_text), image_of_text, ks)


def metrics_of_ranks(ranks, image_of_text, ks=(1, 5, 10)):
    """Recall at K both ways, in percent, with mean and median rank and how many ranks hang on a tie.

    ranks:         Ranks;  image_of_text: (M,) row of the image that each text describes; every image has a text
    returns: dict of text_to_image_recall@1 ..., image_to_text_recall@1 ..., each with its 95 % interval (images are
             resampled, with all of their texts) as *_low and *_high and the number of queries as *_n; mean_recall,
             *_mean_rank, *_median_rank (floored, as published), *_ties, and where there are ties *_optimistic recalls
    """
    clusters = {"text_to_image": np.asarray(image_of_text), "image_to_text": np.arange(len(ranks.image_to_text[0]))}
    metrics, more = {}, {}
    for way in WAYS:
        best, worst = getattr(ranks, way)
        ties = int(np.sum(best != worst))
        for k in ks:
            hits = 100.0 * (worst <= k)
            name = f"{way}_recall@{k}"
            metrics[name] = float(hits.mean())
            metrics[f"{name}_low"], metrics[f"{name}_high"] = clustered_interval(hits, clusters[way])
            metrics[f"{name}_n"] = len(hits)
            if ties:
                more[f"{name}_optimistic"] = 100 * float(np.mean(best <= k))
        more |= {f"{way}_mean_rank": float(worst.mean()), f"{way}_median_rank": float(np.floor(np.median(worst)))}
        more[f"{way}_ties"] = ties
    recalls = [metrics[f"{way}_recall@{k}"] for way in WAYS for k in ks]
    return metrics | {"mean_recall": float(np.mean(recalls))} | more


def feature_ranks(image_features, text_features, image_of_text):
    """`Ranks` by inner product, in memory that does not grow with N * M; the processes share the tiles.

    image_features: (N, D), text_features: (M, D), L2-normalised, float32 tensors on one device
    image_of_text:  (M,) row of the image that each text describes
    """
    owner = np.asarray(image_of_text)
    order = np.argsort(owner, kind="stable")  # the texts of an image side by side: its own scores lie in few tiles
    if (np.diff(owner) < 0).any():
        owner, text_features = owner[order], text_features[torch.from_numpy(order).to(text_features.device)]
    with full_precision():
        above, level = _count(image_features, text_features, owner)
    above, level = ([dist.sum_over_ranks(torch.from_numpy(c)).numpy() for c in counts] for counts in (above, level))
    texts = [np.empty_like(above[0]) for _ in range(2)]
    texts[0][order], texts[1][order] = 1 + above[0], level[0]  # its own image is among those level with it
    return Ranks(tuple(texts), (1 + above[1], 1 + level[1]))


def _count(images, texts, owner):
    """How many score above a query's match, and not below it: [(M,) of texts, (N,) of images] each."""
    N, M = len(images), len(texts)
    height, width = TILES.get(images.device.type, TILES["cpu"])
    starts = np.searchsorted(owner, np.arange(N + 1))  # the texts of image i are starts[i] to starts[i + 1]
    own_score = torch.full((M,), -torch.inf, device=images.device), torch.full((N,), -torch.inf, device=images.device)
    counts = [[np.zeros(M, np.int64), np.zeros(N, np.int64)] for _ in range(2)]
    owners = torch.from_numpy(owner).to(images.device)

    def tiles(rows, first, last):
        for start in range(first // width * width, last, width):
            columns = slice(start, min(start + width, M))
            first_own, past_own = max(start, starts[rows.start]), min(columns.stop, starts[rows.stop])
            own = torch.arange(first_own, max(first_own, past_own), device=images.device)
            yield columns, product(images[rows], texts[columns]), (owners[own] - rows.start, own - start), own

    def own_scores(rows):  # the same products as below, so that each score is the same number both times
        for _, scores, places, own in tiles(rows, starts[rows.start], starts[rows.stop]):
            own_score[0][own] = scores[places]
            own_score[1].scatter_reduce_(0, owners[own], scores[places], "amax")

    def count(rows):
        for columns, scores, places, _ in tiles(rows, 0, M):
            found = [
                count_columns(torch.gt, scores, own_score[0][columns]),
                len(scores) - count_columns(torch.lt, scores, own_score[0][columns]),
            ]
            scores[places] = -torch.inf
            above[1][rows] += count_rows(torch.gt, scores, own_score[1][rows])
            level[1][rows] += scores.shape[1] - count_rows(torch.lt, scores, own_score[1][rows])
            with lock:  # other bands count for the same texts
                above[0][columns] += found[0]
                level[0][columns] += found[1]

    bands = [slice(start, min(start + height, N)) for start in range(0, N, height)]
    (above, level), lock = counts, Lock()
    with one_thread_each(images.device) as each:
        each(own_scores, bands)
        each(count, bands[dist.rank() :: dist.world_size()])
    return counts


def score_ranks(scores, image_of_text):
    """`Ranks` from the scores of all pairs, an array (N, M)."""
    image_of_text = np.asarray(image_of_text)
    own = scores[image_of_text, np.arange(len(image_of_text))]  # (M,)
    by_text = 1 + (scores > own).sum(0), (~(scores < own)).sum(0)
    match = image_of_text[None] == np.arange(len(scores))[:, None]
    return Ranks(by_text, candidate_ranks(scores, match, (np.zeros(len(scores), np.int64),) * 2))


def candidate_ranks(scores, match, otherwise):
    """(optimistic, pessimistic) ranks within each query's candidates, (Q,) each.

    scores, match: (Q, K), the second whether a candidate matches the query
    otherwise:     (optimistic, pessimistic) ranks of queries that have no match among their candidates
    """
    own = np.where(match, scores, -np.inf).max(1, keepdims=True)
    others, found = np.where(match, -np.inf, scores), match.any(1)
    ranks = 1 + (others > own).sum(1), 1 + (~(others < own)).sum(1)
    return tuple(np.where(found, rank, other) for rank, other in zip(ranks, otherwise))
