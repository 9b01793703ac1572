"""Scores of a classification: what fraction is right, by image or by class, and the rules for several labels an image.

Everything is in percent. The prediction is the class of the largest score, of equal ones the first; how many images
have such a tie at the top is said, and where it could matter also what the score would be in the worst and best case.
"""

import numpy as np

from clip_vl.engine.errors import DataError
from clip_vl.engine.random import numpy_rng
from clip_vl.evaluation.bootstrap import PERCENTILES, RESAMPLES, interval

RECALLS = np.linspace(0, 1, 11)


def class_scores(scores, labels, metric="accuracy", seed=0, *, map11="voc", votes=False):
    """A flat dict of the scores of N images, that of `metric` first, with its n and 95 % interval.

    scores: (N, C) NumPy, larger for likelier classes, comparable between images for auc and mAP11
    labels: int (N,), or bool (N, C) for mAP11
    map11:  form of `average_precision11`;  votes: scores are shares of votes, and no class without any is in a top 5
    raises: DataError for scores that are not numbers, of which the largest would be the first class
    """
    if broken := int(np.isnan(scores).any(1).sum()):
        raise DataError(f"the scores of {broken:,} of {len(scores):,} images are not numbers: the model overflowed, or "
                        "its weights are damaged; try --precision fp32")  # fmt: skip
    if metric == "mAP11":
        return _resampled("mAP11", lambda rows: mean_ap11(scores[rows], labels[rows], map11), len(scores), seed)
    hits = scores.argmax(1) == labels
    every = {
        "accuracy": 100 * hits.mean(), "accuracy_n": len(hits), **_named("accuracy", interval(100 * hits, seed)),
    }  # fmt: skip
    by_class = {"mean_per_class": 100 * mean_per_class(hits, labels), "mean_per_class_n": len(hits),
                **_named("mean_per_class", per_class_interval(hits, labels, seed))}  # fmt: skip
    found = by_class | every if metric == "mean_per_class" else every | by_class
    if metric == "auc":
        margin = margin_of(scores)
        found = _resampled("auc", lambda rows: roc_auc(margin[rows], labels[rows]), len(scores), seed) | found
    if scores.shape[1] > 5:
        top = in_top(scores, labels, 5) & (scores[np.arange(len(labels)), labels] > (0 if votes else -np.inf))
        found |= {
            "accuracy_top5": 100 * top.mean(), "accuracy_top5_n": len(top),
            **_named("accuracy_top5", interval(100 * top, seed)),
        }  # fmt: skip
    return found | tie_scores(scores, labels)


def headline_score(scores, labels, metric):
    """The score of `metric` alone, in percent; for images with one class."""
    if metric == "auc":
        return 100 * roc_auc(margin_of(scores), labels)
    hits = scores.argmax(1) == labels
    return 100 * mean_per_class(hits, labels) if metric == "mean_per_class" else 100 * float(hits.mean())


def _named(name, bounds):
    return dict(zip((f"{name}_low", f"{name}_high"), bounds))


def tie_scores(scores, labels):
    """{"accuracy_pessimistic", "accuracy_optimistic"} where the true class shares the top with another; else {}."""
    own, best = scores[np.arange(len(labels)), labels], scores.max(1)
    tied = (scores == best[:, None]).sum(1) > 1
    if not (tied & (own == best)).any():
        return {}
    return {
        "accuracy_pessimistic": 100 * ((own == best) & ~tied).mean(),
        "accuracy_optimistic": 100 * (own == best).mean(),
    }


def top_ties(scores):
    """How many images have several classes of the largest score."""
    return int(((scores == scores.max(1, keepdims=True)).sum(1) > 1).sum())


def in_top(scores, labels, k):
    """bool (N,): whether fewer than k classes come before the true one; of equal scores the lower class comes first."""
    own = scores[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(scores.shape[1]) < np.asarray(labels)[:, None]
    return ((scores > own) | ((scores == own) & earlier)).sum(1) < k


def mean_per_class(hits, labels):
    """Mean over the classes that occur of the share of their images that is right. hits: bool (N,)."""
    count, right = np.bincount(labels), np.bincount(labels, weights=hits)
    return float((right[count > 0] / count[count > 0]).mean())


def per_class_interval(hits, labels, seed=0):
    """95 % bootstrap interval in percent of `mean_per_class`: images are resampled, over the classes then there.

    A resample is one multinomial draw over the cells (class, right or wrong).
    """
    C, N = int(labels.max()) + 1, len(labels)
    cells = np.bincount(2 * labels + hits, minlength=2 * C) / N
    drawn = numpy_rng(seed, "bootstrap of classes", N).multinomial(N, cells, size=RESAMPLES).reshape(RESAMPLES, C, 2)
    count = drawn.sum(2)
    recall = np.where(count > 0, drawn[..., 1] / np.maximum(count, 1), 0.0)
    means = 100 * recall.sum(1) / (count > 0).sum(1)
    return tuple(map(float, np.percentile(means, PERCENTILES)))


def margin_of(scores):
    """(N,) by how much class 1 is likelier than class 0. In float64: of confident probabilities 1 - p is p's last bits,
    and in float32 all would tie.
    """
    return scores[:, 1].astype(np.float64) - scores[:, 0]


def roc_auc(scores, labels):
    """Chance that an image of class 1 scores above one of class 0, equal scores counting half. NaN without both."""
    positive, negative = scores[labels == 1], np.sort(scores[labels == 0])
    if not len(positive) or not len(negative):
        return float("nan")
    below, not_above = (np.searchsorted(negative, positive, side) for side in ("left", "right"))
    return float((below + not_above).mean() / 2 / len(negative))


def mean_ap11(scores, labels, form="voc"):
    """11-point mean average precision over the classes that occur. scores, labels (bool): (N, C)."""
    present = np.flatnonzero(labels.any(0))
    values = [average_precision11(scores[:, c], labels[:, c], form) for c in present]
    return float(np.mean(values)) if values else float("nan")


def average_precision11(scores, labels, form="voc"):
    """Mean over recall 0, 0.1, ... 1 of the best precision at that recall or more; equal scores enter together.

    form: "voc" as PASCAL VOC 2007; "elevater" as ELEVATER's toolkit: the precision at recall 0 is 1, for its curve is
          scikit-learn's, which ends there
    """
    order = np.argsort(-scores, kind="stable")
    hits, last = np.cumsum(labels[order]), np.append(np.diff(scores[order]) != 0, True)
    precision, recall = (hits / np.arange(1, len(hits) + 1))[last], (hits / hits[-1])[last]
    best_from = np.maximum.accumulate(precision[::-1])[::-1]
    points = best_from[np.searchsorted(recall, RECALLS - 1e-9)]
    if form == "elevater":
        points[0] = 1.0
    return float(points.mean())


def _resampled(name, score, N, seed):
    """The score of all rows, in percent, with n and the interval over resampled rows."""
    rng = numpy_rng(seed, f"bootstrap of {name}", N)
    values = [100 * score(rng.integers(N, size=N)) for _ in range(RESAMPLES)]
    bounds = map(float, np.nanpercentile(values, PERCENTILES))
    return {name: 100 * score(np.arange(N)), f"{name}_n": N, **_named(name, bounds)}
