"""Two evaluations of the same samples: how much the score differs, and whether chance would do as much."""

import numpy as np

from clip_vl.evaluation.bootstrap import clustered_interval, interval


def compare(first, second, clusters=None, seed=0):
    """Compare paired scores, such as 1 for right and 0 for wrong.

    first, second: (N >= 1,) scores of the same samples in the same order
    clusters:      N labels; samples of one label, such as the captions of an image, are resampled together
    returns: dict of n, first and second (means in percent), difference (second - first, in percent points) with its
             95 % interval low and high from the paired bootstrap (Efron & Tibshirani, ch. 13), and where all scores
             are 0 or 1 lost (right in the first alone), won (right in the second alone) and mcnemar_p
    """
    first, second = (100 * np.asarray(scores, dtype=np.float64) for scores in (first, second))
    change = second - first
    if clusters is None:
        low, high = interval(change, seed)
    else:
        low, high = clustered_interval(change, np.unique(np.asarray(clusters), return_inverse=True)[1], seed)
    report = {"n": len(change), "first": first.mean(), "second": second.mean(), "difference": change.mean()}
    report = {name: value if name == "n" else float(value) for name, value in report.items()} | {
        "low": low,
        "high": high,
    }
    if np.isin(first, (0, 100)).all() and np.isin(second, (0, 100)).all():
        lost, won = int(np.sum(change < 0)), int(np.sum(change > 0))
        report |= {"lost": lost, "won": won, "mcnemar_p": mcnemar(lost, won)}
    return report


def mcnemar(lost, won):
    """The exact two-sided p-value of McNemar's test (Psychometrika 12, 1947): were the samples that changed sides fair
    coins, how likely is a split at least as uneven as lost : won? It takes samples as independent.
    """
    n, fewer = lost + won, min(lost, won)
    term = total = 1  # whole numbers: binomial coefficients of thousands have no place in a float
    for i in range(fewer):
        term = term * (n - i) // (i + 1)
        total += term
    return min(1.0, 2 * total / 2**n) if n else 1.0
