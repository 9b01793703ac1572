"""All pairs of a large batch without all their logits: products in tiles, and nothing of them is kept.

The process's B rows meet the N = W * B gathered columns in tiles of about 1,024 x 1,024. One product serves both
directions: rows and columns are summed out of the same tile, and the sums of columns are exchanged, not features.
"""

import torch
from torch.autograd.function import once_differentiable

from clip_vl.engine import dist
from clip_vl.losses.base import full_precision

TILE = {"cuda": 4096}  # elsewhere 1,024: a tile of fp32 and its two factors stay in the cache of a CPU core


def tiles(x, y):
    """Slices (rows, columns) of the products of x (B, D) and y (N, D), and of the tile's pairs i = j in them.

    The pair of row i is column rank * B + i.
    yields: rows, columns, and (rows, columns) of the pairs inside the tile, as tensors
    """
    side = TILE.get(x.device.type, 1024)
    offset = dist.rank() * len(x)
    for top in range(0, x.shape[0], side):
        for left in range(0, y.shape[0], side):
            rows, columns = slice(top, min(top + side, len(x))), slice(left, min(left + side, len(y)))
            first, last = max(rows.start + offset, columns.start), min(rows.stop + offset, columns.stop)
            pairs = torch.arange(first, max(first, last), device=x.device)
            yield rows, columns, (pairs - offset - rows.start, pairs - columns.start)


class SymmetricCrossEntropy(torch.autograd.Function):
    """Half the sum of both directions' mean cross entropies of S = scale * x y^T (arXiv:2103.00020; 2204.03610).

    x:       (B, D), this process's rows;  y: (N, D), gathered with gradient;  scale: scalar
    labels:  int64 (N,) or None: i and j are positives of each other if i = j or they share a label other than -1,
             and a row's target is uniform over its positives
    returns: scalar whose mean over the processes is the loss of the whole batch

    Kept for the backward pass: x, y, and for rows and columns the largest logit and the log of the sum beside it, so
    that a probability near 1 is as exact as softmax makes it.
    """

    @staticmethod
    def forward(ctx, x, y, scale, labels):
        shares = share_of_positives(labels, x.dtype)
        row_sums, column_sums = LogSums(len(x), x), LogSums(len(y), x)
        positive = x.new_zeros(len(x))  # mean logit of each row's positives
        for rows, columns, pairs in tiles(x, y):
            logits = (x[rows] * scale) @ y[columns].T
            row_sums.add(rows, logits, 1)
            column_sums.add(columns, logits, 0)
            if labels is None:
                positive[rows][pairs[0]] = logits[pairs]
            else:
                target = shared_targets(labels, shares, rows, columns, pairs, len(x))
                positive[rows] += (logits * target).sum(1)
        column_sums.exchange()
        ctx.save_for_backward(x, y, scale, *row_sums.state, *column_sums.state)
        ctx.labels, ctx.shares = labels, shares
        mine = slice(dist.rank() * len(x), (dist.rank() + 1) * len(x))
        losses = (row_sums.largest - positive) + row_sums.log
        losses += (column_sums.largest[mine] - positive) + column_sums.log[mine]
        return losses.mean() / 2

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        x, _, scale, *_ = ctx.saved_tensors
        with full_precision(x.device):
            grad_x, grad_y = _slopes_times_features(ctx.labels, ctx.shares, *ctx.saved_tensors)
        factor = gradient / (2 * len(x))
        grad_scale = ((grad_x * x).sum() * factor).view_as(scale)
        return grad_x.mul_(factor * scale), grad_y.mul_(factor), grad_scale, None


def _slopes_times_features(labels, shares, x, y, scale, row_largest, row_log, column_largest, column_log):
    """2 B dL/dS of every tile, times y and, transposed, times scale * x -> (B, D), (N, D)."""
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
    for rows, columns, pairs in tiles(x, y):
        scaled = x[rows] * scale
        logits = scaled @ y[columns].T
        slope = (logits - row_largest[rows, None]).sub_(row_log[rows, None]).exp_()
        slope += logits.sub_(column_largest[columns]).sub_(column_log[columns]).exp_()
        if labels is None:
            slope[pairs] -= 2
        else:
            slope -= 2 * shared_targets(labels, shares, rows, columns, pairs, len(x))
        grad_x[rows].addmm_(slope, y[columns])
        grad_y[columns].addmm_(slope.T, scaled)
    return grad_x, grad_y


class LogSums:
    """Running log-sum-exp of rows or columns of a matrix that comes in tiles, as (largest, log of the rest)."""

    def __init__(self, length, like):
        self.largest = like.new_full((length,), -torch.inf)
        self.sums = like.new_zeros(length)

    def add(self, rows, logits, dim):
        """logits: a tile; its sums along `dim` belong to the slice `rows`."""
        before = self.largest[rows].clone()
        largest = torch.maximum(before, logits.amax(dim))
        self.sums[rows] *= (before - largest).exp()
        self.sums[rows] += (logits - largest.unsqueeze(dim)).exp_().sum(dim)
        self.largest[rows] = largest

    def exchange(self):
        """Take in the other processes' sums of the same columns."""
        if dist.world_size() > 1:
            largest, sums = dist.gather_rows(torch.stack([self.largest, self.sums])[None]).unbind(1)  # (W, N) each
            self.largest = largest.amax(0)
            self.sums = (sums * (largest - self.largest).exp()).sum(0)

    @property
    def log(self):
        return self.sums.log()

    @property
    def state(self):
        return self.largest, self.log


def share_of_positives(labels, dtype):
    """1 / (how many positives an item has, itself included): labels int64 (N,), -1 for none -> (N,)."""
    if labels is None:
        return None
    _, classes, sizes = labels.unique(return_inverse=True, return_counts=True)
    return 1 / sizes[classes].where(labels != -1, 1).to(dtype)


def shared_targets(labels, shares, rows, columns, pairs, B):
    """The tile of the target distribution: the share where row and column have one label, or are a pair."""
    first = dist.rank() * B
    row_labels = labels[rows.start + first : rows.stop + first, None]
    target = (row_labels == labels[columns]) & (row_labels != -1)
    target[pairs] = True
    return target * shares[columns]


class PairwiseSigmoid(torch.autograd.Function):
    """-(1/N) sum over all pairs of log sigmoid(+-(scale * x_i y_j + bias)), + on the diagonal (arXiv:2303.15343).

    x: (B, D), this process's rows;  y: (N, D), gathered with gradient;  scale, bias: scalars
    returns: scalar whose mean over the processes is the loss of the whole batch

    The gradient needs no sum over a row, so it is taken in the same pass over the tiles.
    """

    @staticmethod
    def forward(ctx, x, y, scale, bias):
        wanted = any(ctx.needs_input_grad)
        total, grad_bias = x.new_zeros(()), x.new_zeros(())
        grad_x, grad_y = (torch.zeros_like(x), torch.zeros_like(y)) if wanted else (None, None)
        for rows, columns, pairs in tiles(x, y):
            scaled = x[rows] * scale
            wrong = torch.addmm(bias.to(x), scaled, y[columns].T)  # how far on the wrong side, as a logit
            wrong[pairs] *= -1
            total += torch.nn.functional.softplus(wrong).sum()
            if wanted:
                slope = wrong.sigmoid_()
                slope[pairs] *= -1
                grad_x[rows].addmm_(slope, y[columns])
                grad_y[columns].addmm_(slope.T, scaled)
                grad_bias += slope.sum()
        if wanted:
            grad_scale = (grad_x * x).sum()
            ctx.save_for_backward(grad_x.mul_(scale), grad_y, grad_scale.view_as(scale), grad_bias.view_as(bias))
        return total / len(x)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        B = ctx.saved_tensors[0].shape[0]
        return tuple(each * (gradient / B) for each in ctx.saved_tensors)
