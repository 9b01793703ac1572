"""An inverted file: each key in the list of its nearest centroid, each query compared with the keys of a few lists.

All queries that look into a list are compared with it in one matrix product, in bfloat16 where the device is fast at
it, which is several times faster than a search query by query.
"""

import math

import torch

from clip_vl.engine import dist
from clip_vl.engine.optim import is_fast_at_bf16
from clip_vl.engine.random import torch_generator
from clip_vl.evaluation.neighbours import grouped_largest, largest, one_thread_each

PROBES = 4  # lists that a query looks into, until more are asked for
LISTS = 2  # of them, times the square root of the keys
TRAINING_ROUNDS, TRAINING_ROWS = 5, 40  # of k-means; rows per centroid
BLOCK = 4096  # rows compared with all centroids at a time


class InvertedLists:
    """`lists(queries, count)` -> rows (n, count) of the keys that look nearest, -1 where the lists have fewer.

    keys: (N, D) float32, L2-normalised
    """

    def __init__(self, keys, probes=PROBES, seed=0):
        self.dtype = torch.bfloat16 if is_fast_at_bf16(keys.device) else torch.float32
        lists = max(1, min(int(LISTS * math.sqrt(len(keys))), len(keys) // TRAINING_ROWS))
        centroids = _centroids(keys, lists, seed, self.dtype) if dist.rank() == 0 else None
        self.centroids = dist.gather(centroids)[0].to(keys.device)  # the first process's, for all
        self.probes = min(probes, lists)
        nearest = _nearest(keys, self.centroids, 1)[:, 0]
        self.order = nearest.argsort(stable=True)  # rows of the keys, list after list
        self.starts = [0, *nearest.bincount(minlength=lists).cumsum(0).tolist()]
        self.keys = keys.to(self.dtype)[self.order]

    def __call__(self, queries, count):
        queries = queries.to(self.dtype)
        probes = _nearest(queries, self.centroids, self.probes)  # (n, p)
        order = probes.flatten().argsort(stable=True)
        ends = probes.flatten().bincount(minlength=len(self.centroids)).cumsum(0).tolist()
        scores = torch.full((probes.numel(), count), -torch.inf, dtype=self.dtype, device=queries.device)
        rows = torch.full((probes.numel(), count), -1, dtype=torch.int32, device=queries.device)

        def compare(number, start, end):
            first, last = self.starts[number], self.starts[number + 1]
            if start == end or first == last:
                return
            places = order[start:end]  # pairs of a query and this list
            found, kept = largest(queries[places // self.probes] @ self.keys[first:last].T, count)
            scores[places, : found.shape[1]] = found
            rows[places, : found.shape[1]] = (kept + first).int()

        with one_thread_each(queries.device) as each:
            each(compare, range(len(ends)), [0, *ends], ends)
        scores, rows = scores.view(len(queries), -1), rows.view(len(queries), -1)
        rows = rows.gather(1, largest(scores, count)[1]).long()
        return torch.where(rows < 0, -1, self.order[rows.clamp(min=0)])


def _nearest(rows, centroids, count):
    """(n, count) numbers of the centroids nearest to each row."""
    centroids = centroids.T
    return torch.cat([grouped_largest(part.to(centroids.dtype) @ centroids, count)[1] for part in rows.split(BLOCK)])


def _centroids(keys, lists, seed, dtype):
    """(lists, D) centroids of spherical k-means over a sample of the keys; one without rows stays where it was."""
    draw = torch.randperm(len(keys), generator=torch_generator(seed, "k-means sample"))[: lists * TRAINING_ROWS]
    sample = keys[draw.to(keys.device)]
    centroids = sample[:lists].clone()
    for _ in range(TRAINING_ROUNDS):
        nearest = _nearest(sample, centroids.to(dtype), 1)[:, 0]
        sums = torch.zeros_like(centroids).index_add_(0, nearest, sample)
        filled = nearest.bincount(minlength=lists) > 0
        centroids[filled] = torch.nn.functional.normalize(sums[filled], dim=1)
    return centroids.to(dtype)
