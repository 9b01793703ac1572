"""Approximate nearest neighbours, with the recall measured against the exact ones on a sample.

The exact search costs 2 N^2 D operations, that in lists about N^1.5 D. Where neighbours lie in no clusters at all, as
those of random vectors, lists miss most of them, and the recall says so.
"""

from functools import partial

import torch

from clip_vl.engine.errors import UserError
from clip_vl.engine.random import numpy_rng
from clip_vl.evaluation.neighbours.exact import SPARE, Neighbours, _best, check_k, exclusion_of, sharded_top_k, top_k
from clip_vl.evaluation.neighbours.inverted_lists import InvertedLists
from clip_vl.evaluation.neighbours.tiles import one_thread_each

METHODS = ("auto", "exact", "ivf", "hnsw")
EXACT_ROWS = 1_000_000  # up to here "auto" is exact
SAMPLE = 1000  # queries whose neighbours are searched exactly to measure the recall
RECALL = 0.955  # of the sample, that the number of lists per query must reach
QUERIES = 2**16  # searched at a time: fewer make the lists' products small; their candidates take some hundred MB
RESCORED = 4096  # of them, whose candidates one thread scores again
HNSW_LINKS, HNSW_BUILD, HNSW_SEARCH = 32, 60, 64


def find_neighbours(features, k, *, ids, duplicate_above, method="auto", seed=0):
    """The k neighbours of each row among the others, from all processes, and how they were found.

    features: (N, D) float32, L2-normalised; ids (N,) int64: rows of one id are no neighbours
    method:   exact, ivf, hnsw, or auto: exact up to a million rows, then ivf
    returns:  Neighbours, {"method", "recall": the share of the true neighbours of a sample that was found; 1 if exact}
    """
    if method not in METHODS:
        raise UserError(f"--method {method} is not one of {', '.join(METHODS)}")
    if method == "auto":
        method = "exact" if len(features) <= EXACT_ROWS else "ivf"
    options = {"exclude": (ids, ids), "duplicate_above": duplicate_above}
    if method == "exact":
        return sharded_top_k(features, features, k, **options), {"method": "exact", "recall": 1.0}
    sample = Sample(features, k, seed=seed, **options)
    if method == "ivf":
        candidates = InvertedLists(features, seed=seed)
        probe_enough(candidates, sample)
    else:
        candidates = hnsw_candidates(features)
    found = sharded_top_k(features, features, k, search=partial(approximate_top_k, candidates), **options)
    return found, {"method": method, "recall": sample.recall(found.rows[sample.picked])}


class Sample:
    """Some rows and their true neighbours, to measure a recall with."""

    def __init__(self, features, k, *, exclude, duplicate_above, seed=0, size=SAMPLE):
        self.picked = torch.from_numpy(numpy_rng(seed, "recall sample").permutation(len(features))[:size])
        self.queries, self.keys, self.k = features[self.picked.to(features.device)], features, k
        self.options = {"exclude": (exclude[0][self.picked], exclude[1]), "duplicate_above": duplicate_above}
        self.truth = top_k(self.queries, features, k, **self.options).rows.cpu()

    def recall(self, rows):
        """The share of the true neighbours that `rows` (n, k) of the sample has."""
        found = (self.truth[:, :, None] == rows.cpu()[:, None]).any(2) & (self.truth >= 0)
        return float(found.sum() / (self.truth >= 0).sum().clamp(min=1))


def probe_enough(lists, sample, wanted=RECALL):
    """Search half as many lists more until the sample's recall is `wanted`, or they are a quarter."""
    while True:
        rows = approximate_top_k(lists, sample.queries, sample.keys, sample.k, **sample.options).rows
        if sample.recall(rows) >= wanted or 6 * lists.probes > len(lists.centroids):
            return
        lists.probes += lists.probes // 2


def hnsw_candidates(features):
    """Candidates from a graph of near neighbours, by FAISS; slower to build than lists."""
    import faiss

    index = faiss.IndexHNSWFlat(features.shape[1], HNSW_LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction, index.hnsw.efSearch = HNSW_BUILD, HNSW_SEARCH
    index.add(features.cpu().numpy())
    return lambda queries, count: torch.from_numpy(index.search(queries.cpu().numpy(), count)[1]).to(queries.device)


def approximate_top_k(candidates, queries, keys, k, *, exclude=None, duplicate_above=None):
    """As `neighbours.top_k`, among the rows that `candidates(queries, count)` names, (n, count), -1 for none."""
    check_k(k, len(keys), exclude)
    exclusion, parts = exclusion_of(exclude, duplicate_above, keys.device), []
    for first in range(0, len(queries), QUERIES):
        block = slice(first, first + QUERIES)
        rows = candidates(queries[block], min(k + SPARE, len(keys)))

        def rescored(start):
            part = slice(first + start, min(first + start + RESCORED, block.stop))  # noqa: B023
            return _best(queries[part], keys, rows[start : start + RESCORED], k, exclusion.of(part))  # noqa: B023

        with one_thread_each(keys.device) as each:
            parts += each(rescored, range(0, len(rows), RESCORED))
    return Neighbours(*map(torch.cat, zip(*parts)))
