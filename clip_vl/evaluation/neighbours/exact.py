"""Nearest neighbours by inner product: exact, in blocks, in bounded memory; never all scores at once.

    found = top_k(features, features, 10, exclude=(ids, ids), duplicate_above=0.99)
    found.rows, found.scores       (n, 10) each, best first

Where the device is fast at bfloat16, candidates come from its products and are scored again in float32. A bound on the
rounding proves for each query that no key outside of them can belong to the result; queries without that proof get
candidates from float32 products. The result is that of float32 scores either way, ties by row, whatever the blocks.
"""

from typing import NamedTuple

import torch

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.optim import is_fast_at_bf16
from clip_vl.evaluation.neighbours.tiles import full_precision, one_thread_each

QUERY_BLOCK = {"cpu": 512, "cuda": 4096}
KEY_BLOCK = 8192
GROUP = 16  # keys of which only the best is examined first
SPARE, MOST_SPARE = 14, 112  # candidates beyond k: excluded ones, and the margin of the proof
MOST_OPEN = 0.02  # share of queries without proof that a pass may leave before it takes more candidates


class Neighbours(NamedTuple):
    """rows: (n, k) int64 of the keys, best first, -1 where there are fewer; scores: (n, k) float32, then -inf;
    duplicates: (n,) int64, near-duplicates that were passed over."""

    rows: torch.Tensor
    scores: torch.Tensor
    duplicates: torch.Tensor


class Exclusion(NamedTuple):
    """Pairs that are no neighbours: of one id, or more similar than `above`."""

    query_ids: torch.Tensor | None
    key_ids: torch.Tensor | None
    above: float

    def of(self, places):
        """The exclusion of some of the queries."""
        return self if self.query_ids is None else self._replace(query_ids=self.query_ids[places])

    def same_id(self, rows):
        """(n, c) bool for key rows (n, c) of the n queries."""
        if self.query_ids is None:
            return torch.zeros_like(rows, dtype=torch.bool)
        return self.key_ids[rows] == self.query_ids[:, None]


def top_k(queries, keys, k, *, exclude=None, duplicate_above=None, dtype=None):
    """The k keys of largest inner product with each query.

    queries (n, D), keys (N, D): float32 on one device, finite; L2-normalised for cosine similarity
    exclude:         (query ids (n,), key ids (N,)) int64: pairs of one id are left out, so a query that is itself a
                     key, and images of one content hash
    duplicate_above: pairs that score more are left out as well
    dtype:           of the first pass [bfloat16 where the device is fast at it]
    returns: Neighbours
    raises:  UserError where k keys are not there
    """
    check_k(k, len(keys), exclude)
    exclusion = exclusion_of(exclude, duplicate_above, keys.device)
    dtype = dtype or (torch.bfloat16 if is_fast_at_bf16(keys.device) else torch.float32)
    block = QUERY_BLOCK.get(keys.device.type, 256)
    with full_precision():
        passes = [_Rounded(keys, kind) for kind in dict.fromkeys((dtype, torch.float32))]

        def search(start):
            part = slice(start, start + block)
            return _search(queries[part], keys, passes, k, exclusion.of(part))

        with one_thread_each(keys.device) as each:
            parts = each(search, range(0, len(queries), block))
    if not parts:
        empty = torch.empty(0, k, device=keys.device)
        return Neighbours(empty.long(), empty, empty[:, 0].long())
    return Neighbours(*map(torch.cat, zip(*parts)))


def sharded_top_k(queries, keys, k, *, exclude=None, search=top_k, **options):
    """`top_k` with the queries divided between the processes; all of the result on every process, on the host."""
    rank, world = dist.rank(), dist.world_size()
    start, stop = len(queries) * rank // world, len(queries) * (rank + 1) // world
    if exclude is not None:
        check_k(k, len(keys), exclude)
        exclude = exclude[0][start:stop], exclude[1]
    part = search(queries[start:stop], keys, k, exclude=exclude, **options)
    return Neighbours(*(torch.cat(tensors) for tensors in zip(*dist.gather(tuple(t.cpu() for t in part)))))


def check_k(k, N, exclude):
    """Raise UserError where there are no k keys, one less when a query excludes itself."""
    most = N - (exclude is not None)
    if not 1 <= k <= most:
        raise UserError(f"{k} neighbours of {N} rows cannot be: choose between 1 and {most}")


def exclusion_of(exclude, duplicate_above, device):
    query_ids, key_ids = (None, None) if exclude is None else (torch.as_tensor(ids, device=device) for ids in exclude)
    return Exclusion(query_ids, key_ids, float("inf") if duplicate_above is None else duplicate_above)


class _Rounded:
    """The keys in the dtype of a pass over them; error, norm: the largest rounding error and norm of a row.

    What is rounded is first centred: the mean moves all scores of a query alike, and small numbers lose less.
    """

    def __init__(self, keys, dtype):
        self.norm, self.error, self.count = 0.0, 0.0, SPARE
        self.unit = 2.0**-8 if dtype == torch.bfloat16 else 2.0**-24
        is_rounded = dtype != keys.dtype
        self.mean = keys.mean(0) if is_rounded else torch.zeros_like(keys[0])
        self.rows = torch.empty(keys.shape, dtype=dtype, device=keys.device) if is_rounded else keys
        for start in range(0, len(keys), KEY_BLOCK):
            exact, rounded = keys[start : start + KEY_BLOCK] - self.mean, self.rows[start : start + KEY_BLOCK]
            if is_rounded:
                rounded.copy_(exact)
            self.norm = max(self.norm, float(rounded.float().norm(dim=1).max()))
            self.error = max(self.error, float((exact - rounded.float()).norm(dim=1).max()))

    def bound(self, queries, low, score):
        """(n,) what the score of a key may be at most whose score in this pass is `score` at most.

        |q.k - q'k'| <= |q - q'| |k'| + |q| |k - k'| (Cauchy-Schwarz), and sums in float32 and the result are rounded.
        """
        low, norm = low.float(), queries.norm(dim=1)
        error = (queries - low).norm(dim=1) * self.norm + norm * self.error + score.abs() * self.unit
        slack = 4 * queries.shape[1] * 2.0**-24 * norm * (self.norm + self.mean.norm())
        return score + queries @ self.mean + error + slack


def _search(queries, keys, passes, k, exclusion):
    """Neighbours of one block of queries: those that the first pass cannot prove are left to the next.

    A pass that fails often examines more candidates from the next block on.
    """
    if not passes:
        return _dense(queries, keys, k, exclusion)
    low, *others = passes
    rounded, count = queries.to(low.rows.dtype), min(k + low.count, len(keys))
    first, rows = _candidates(rounded, low.rows, count)
    found = _best(queries, keys, rows, k, exclusion)
    if count < len(keys):
        open_ = torch.nonzero(found.scores[:, -1] <= low.bound(queries, rounded, first.float().amin(1))).flatten()
        if len(open_):
            for tensor, part in zip(found, _search(queries[open_], keys, others, k, exclusion.of(open_))):
                tensor[open_] = part
        if len(open_) > len(queries) * MOST_OPEN:
            low.count = min(2 * low.count, MOST_SPARE)
    return found


def _candidates(queries, keys, count):
    """The first-pass scores (n, count) and rows (n, count) of the best keys; no other key scores more."""
    scores = rows = None
    for start in range(0, len(keys), KEY_BLOCK):
        new, places = grouped_largest(queries @ keys[start : start + KEY_BLOCK].T, count)
        if scores is not None:
            new, places = torch.cat([scores, new], 1), torch.cat([rows, places + start], 1)
            new, kept = largest(new, count)
            places = places.gather(1, kept)
        scores, rows = new, places
    return scores, rows


def grouped_largest(scores, count):
    """As `largest`, for long rows.

    The largest lie in the `count` groups of largest maximum, or in the few columns behind the groups. A group is every
    m-th column, since a maximum over rows of memory takes a 30th of the time of one along them.
    """
    m = scores.shape[1] // GROUP
    if m <= count:
        return largest(scores, count)
    _, groups = largest(scores[:, : m * GROUP].unflatten(1, (GROUP, m)).amax(1), count)
    columns = (groups[:, None] + m * torch.arange(GROUP, device=scores.device)[:, None]).flatten(1)
    behind = torch.arange(m * GROUP, scores.shape[1], device=scores.device).expand(len(scores), -1)
    columns = torch.cat([columns, behind], 1)
    values, kept = largest(scores.gather(1, columns), count)
    return values, columns.gather(1, kept)


def largest(scores, count):
    """The `count` largest values of each row, or all there are, and their columns, in no order.

    On a CPU bfloat16 scores are partitioned by NumPy as integers, score above column, in a sixth of the time of topk.
    """
    N = scores.shape[1]
    if count >= N:
        return scores, torch.arange(N, device=scores.device).expand(len(scores), -1)
    if scores.dtype != torch.bfloat16 or scores.device.type != "cpu" or N > 2**16:
        return scores.topk(count, sorted=False)
    packed = _ordered(scores.view(torch.int16).int())
    packed.mul_(2**16).bitwise_or_(torch.arange(N, dtype=torch.int32))
    packed.numpy().partition(N - count, axis=1)
    packed = packed[:, N - count :]
    return _ordered(packed >> 16).short().view(torch.bfloat16), (packed & 0xFFFF).long()


def _ordered(bits):
    """The bits of bfloat16 numbers, int32, as integers of their order, and back: those of negative numbers fall."""
    return (bits >> 31).bitwise_and_(0x7FFF).bitwise_xor_(bits)


def pair_scores(queries, keys, rows):
    """(n, c) float32 inner products of queries (n, D) with keys[rows]; a pair's is the same in whatever company.

    A few queries at a time stay in a CPU's cache. A GPU sums in an order that depends on the shape: there in float64.
    """
    step, kind = (8, torch.float32) if keys.device.type == "cpu" else (512, torch.float64)
    parts = []
    for some, places in zip(queries.split(step), rows.split(step)):
        picked = keys.index_select(0, places.flatten()).view(*places.shape, -1).to(kind)
        parts.append(picked.mul_(some[:, None]).sum(-1).float())
    return torch.cat(parts)


def _best(queries, keys, rows, k, exclusion):
    """Neighbours among candidate rows (n, c), where -1 stands for none: scored, without what is excluded, in order."""
    rows = rows.sort(1).values  # a stable sort by score then leaves ties in the order of rows
    scores = pair_scores(queries, keys, rows.clamp(min=0))
    same = exclusion.same_id(rows) | (rows < 0)
    duplicate = ~same & (scores > exclusion.above)
    scores = scores.masked_fill(same | duplicate, -torch.inf)
    scores, order = scores.sort(dim=1, descending=True, stable=True)
    rows = rows.gather(1, order).masked_fill(scores == -torch.inf, -1)
    missing = max(0, k - rows.shape[1])
    rows = torch.nn.functional.pad(rows, (0, missing), value=-1)[:, :k]
    scores = torch.nn.functional.pad(scores, (0, missing), value=-torch.inf)[:, :k]
    return Neighbours(rows.contiguous(), scores.contiguous(), duplicate.sum(1))


def _dense(queries, keys, k, exclusion):
    """Neighbours from all scores of each query: for ties and duplicates by the dozen, which no pass can tell apart."""
    parts = []
    largest = max(float(part.norm(dim=1).max()) for part in keys.split(KEY_BLOCK))
    for i in range(len(queries)):
        mine = exclusion.of(slice(i, i + 1))
        scores = keys @ queries[i]  # (N,)
        if mine.query_ids is not None:
            scores[mine.key_ids == mine.query_ids] = -torch.inf
        slack = 4 * keys.shape[1] * 2.0**-24 * float(queries[i].norm()) * largest
        certain = scores.masked_fill(scores > mine.above - slack, -torch.inf)  # surely no duplicate
        rows = torch.nonzero(scores >= certain.topk(k).values[-1] - 2 * slack).T
        parts.append(_best(queries[i : i + 1], keys, rows, k, mine))
    return Neighbours(*map(torch.cat, zip(*parts)))
