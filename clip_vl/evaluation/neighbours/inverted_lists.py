"""An inverted file: each key in the list of its nearest centroid, each query compared with the keys of a few lists.

All queries of a list are compared with it in one matrix product, in bfloat16 where the device is fast at
it, which is several times faster than a search query by query.
"""

import math

import torch
from torch.nn import functional

from clip_vl.engine import dist
from clip_vl.engine.optim import is_fast_at_bf16
from clip_vl.engine.random import torch_generator
from clip_vl.evaluation.neighbours.exact import grouped_largest, largest
from clip_vl.evaluation.neighbours.tiles import one_thread_each

PROBES = 8  # lists whose best keys a query gets; of more, where they are asked for, only what is better
LISTS = 4  # of them, times the square root of the keys
TRAINING_ROUNDS, SPLITTING_ROUNDS, TRAINING_ROWS = 8, 5, 20  # of k-means; rows per centroid
SPLIT = 0.1  # of the way to one of its rows, that the halves of a list begin apart
STEP = 64  # products have sizes of multiples: oneDNN makes a kernel for each size, which takes longer than the product
BLOCK = 4096  # rows compared with all centroids at a time


class InvertedLists:
    """`lists(queries, count)` -> rows (n, count) of the keys that seem nearest, -1 where the lists have fewer.

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
        self.keys = functional.pad(keys.to(self.dtype)[self.order], (0, 0, 0, STEP))

    def __call__(self, queries, count):
        queries = queries.to(self.dtype)
        probes = _nearest(queries, self.centroids, self.probes)  # (n, p), best first
        shape = (*probes.shape, count)
        scores = torch.full(shape, -torch.inf, dtype=self.dtype, device=queries.device)
        rows = torch.full(shape, -1, dtype=torch.int32, device=queries.device)
        first = slice(0, PROBES)
        self._compare(queries, probes[:, first], scores[:, first], rows[:, first])
        if self.probes > PROBES:  # most of the other lists have nothing better than what the first ones gave
            rest = slice(PROBES, None)
            floor = largest(scores[:, first].flatten(1), count)[0].amin(1)
            self._compare(queries, probes[:, rest], scores[:, rest], rows[:, rest], floor)
        scores, rows = scores.flatten(1), rows.flatten(1)
        rows = rows.gather(1, largest(scores, count)[1]).long()
        return torch.where(rows < 0, -1, self.order[rows.clamp(min=0)])

    def _compare(self, queries, probes, scores, rows, floor=None):
        """Write the best of each list of a query, probes (n, p), into scores and rows (n, p, count).

        floor: (n,) a list without a key that scores more is passed over
        """
        order = probes.flatten().argsort(stable=True)
        ends = probes.flatten().bincount(minlength=len(self.centroids)).cumsum(0).tolist()
        asking, place = order // probes.shape[1], order % probes.shape[1]  # queries, list after list

        def compare(number, start, end):
            first, last = self.starts[number], self.starts[number + 1]
            if start == end or first == last:
                return
            mine, there = asking[start:end], place[start:end]
            padded = functional.pad(mine, (0, -len(mine) % STEP))
            keys = self.keys[first : first + -(-(last - first) // STEP) * STEP]
            products = (queries[padded] @ keys.T)[: len(mine), : last - first]
            if floor is not None:
                better = torch.nonzero(products.amax(1) > floor[mine])[:, 0]
                products, mine, there = products[better], mine[better], there[better]
            found, kept = largest(products, scores.shape[2])
            scores[mine, there, : found.shape[1]] = found
            rows[mine, there, : found.shape[1]] = (kept + first).int()

        with one_thread_each(queries.device) as each:
            each(compare, range(len(ends)), [0, *ends], ends)


def _nearest(rows, centroids, count):
    """(n, count) numbers of the centroids nearest to each row, best first."""
    found = [grouped_largest(part.to(centroids.dtype) @ centroids.T, count) for part in rows.split(BLOCK)]
    return torch.cat([numbers.gather(1, scores.argsort(1, descending=True)) for scores, numbers in found])


def _centroids(keys, lists, seed, dtype):
    """(lists, D) centroids of spherical k-means over a sample of the keys; one without rows stays where it was.

    The time of a search grows with the squares of the lists' lengths: in the first rounds the longest are split in two,
    the second of which takes the place of a short one.
    """
    draw = torch.randperm(len(keys), generator=torch_generator(seed, "k-means sample"))[: lists * TRAINING_ROWS]
    sample = keys[draw.to(keys.device)]
    centroids = sample[:lists].clone()
    for round_ in range(TRAINING_ROUNDS):
        nearest = _nearest(sample, centroids.to(dtype), 1)[:, 0]
        sums, counts = torch.zeros_like(centroids).index_add_(0, nearest, sample), nearest.bincount(minlength=lists)
        filled = counts > 0
        centroids[filled] = functional.normalize(sums[filled], dim=1)
        if round_ < SPLITTING_ROUNDS:
            short, long = torch.nonzero(counts < TRAINING_ROWS / 2)[:, 0], counts.argsort(descending=True)
            long = long[counts[long] > 2 * TRAINING_ROWS][: len(short)]
            member = torch.zeros_like(counts).scatter_(0, nearest, torch.arange(len(sample), device=keys.device))
            aside = SPLIT * (sample[member[long]] - centroids[long])
            centroids[short[: len(long)]], centroids[long] = centroids[long] + aside, centroids[long] - aside
    return centroids.to(dtype)
