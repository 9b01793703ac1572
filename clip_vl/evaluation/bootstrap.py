"""The bootstrap interval that stands beside a score (Efron & Tibshirani, An Introduction to the Bootstrap, ch. 13)."""

import numpy as np

from clip_vl.engine.random import numpy_rng

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)


def interval(values, seed=0):
    """95 % percentile interval (low, high) of the mean of `values` (N >= 1,); the same values and seed give the same.

    Resampling N values with replacement is one multinomial draw of how often each distinct value is taken, so soft
    scores, which have five distinct values, cost five draws and not N.
    """
    distinct, counts = np.unique(np.asarray(values, dtype=np.float64), return_counts=True)
    N = counts.sum()
    rng = numpy_rng(seed, "bootstrap", N)
    means = [rng.multinomial(N, counts / N) @ distinct / N for _ in range(RESAMPLES)]
    low, high = np.percentile(means, PERCENTILES)
    return float(low), float(high)


def clustered_interval(values, clusters, seed=0):
    """The same where values of one cluster belong together, such as the captions of an image: clusters are resampled.

    values: (N,);  clusters: (N,) integers from 0, every one of which has a value
    """
    sums, sizes = np.bincount(clusters, weights=values), np.bincount(clusters)
    rng = numpy_rng(seed, "clustered bootstrap", len(sums))
    taken = [rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums))) for _ in range(RESAMPLES)]
    low, high = np.percentile([weights @ sums / (weights @ sizes) for weights in taken], PERCENTILES)
    return float(low), float(high)
