"""Scores of compositional probes: verdicts on items, ties by two rules, means of groups, intervals over images.

    verdicts = [verdict_on("captions", block) for block in blocks]          block: scores (K images, L captions)
    table_row(row, verdicts, items, tie="wrong")                       score, pessimistic, chance, interval, n, ties

Definitions: Winoground arXiv:2204.03162 section 4.2; CREPE arXiv:2212.07796 section 3.3; the others count an item right
when the true side scores higher. Under the pessimistic rule any tie with it is wrong.
"""

import hashlib
from typing import NamedTuple

import numpy as np

from clip_vl.engine.random import numpy_rng

RESAMPLES = 1000
PERCENTILES = (2.5, 97.5)
WINOGROUND_CHANCE = {"text": 1 / 4, "image": 1 / 4, "group": 1 / 6}  # of orders without ties: 4 of 24 satisfy both


class Verdict(NamedTuple):
    """rank, best_rank: of the true side, ties before and behind it; tie: is there one;  margin: true - best false.

    right: {metric: (ties wrong, ties right)} of Winoground;  decision, gold: of "match";  choices: how many
    """

    tie: bool
    margin: float
    rank: int = 1
    best_rank: int = 1
    choices: int = 2
    right: dict | None = None
    decision: bool | None = None
    gold: int = 0


def verdict_on(kind, block, gold=0, threshold=0.0):
    """The Verdict on an item's scores (K images, L captions). What is not a number makes it wrong, by any rule."""
    block = np.asarray(block, dtype=np.float32)
    if kind == "winoground":
        return _winoground(block)
    if kind == "match":
        score = block[:, 0].mean()
        margin = float(score - threshold) if gold else float(threshold - score)
        decision = not gold if np.isnan(score) else bool(score > threshold)
        return Verdict(bool(score == threshold), margin, decision=decision, gold=gold)
    scores = block[0] if kind == "captions" else block[:, 0]
    true, others = scores[0], scores[1:]
    rank, best_rank = 1 + int((~(others < true)).sum()), 1 + int((~(others <= true)).sum())
    return Verdict(bool((others == true).any()), float(true - others.max()), rank, best_rank, len(scores))


def _winoground(block):
    """text: each image prefers its caption; image: each caption its image; group: both. All comparisons are strict."""
    (a, b), (d, c) = block.tolist()  # s(i0,c0), s(i0,c1); s(i1,c0), s(i1,c1)
    strict = {"text": a > b and c > d, "image": a > d and c > b}
    loose = {"text": a >= b and c >= d, "image": a >= d and c >= b}
    right = {name: (strict[name], loose[name]) for name in strict}
    right["group"] = all(strict.values()), all(loose.values())
    tie = a == b or c == d or a == d or c == b
    return Verdict(tie, min(a - b, c - d, a - d, c - b), right=right)


def calibrate(scores, labels):
    """The threshold with the best mean of both classes' accuracies, in the middle of a gap between scores; the lowest
    of equals. A case is a match when its score is above it.
    """
    scores, labels = np.asarray(scores, dtype=np.float64), np.asarray(labels, dtype=bool)
    scores, labels = scores[~np.isnan(scores)], labels[~np.isnan(scores)]
    distinct = np.unique(scores)
    if len(distinct) < 2:
        return float(distinct[0]) if len(distinct) else 0.0
    cuts = (distinct[:-1] + distinct[1:]) / 2
    positive, negative = np.sort(scores[labels]), np.sort(scores[~labels])
    kept = 1 - np.searchsorted(positive, cuts, side="right") / max(len(positive), 1)
    refused = np.searchsorted(negative, cuts, side="right") / max(len(negative), 1)
    return float(cuts[np.argmax(kept + refused)])


def fold_of(text):
    """0 or 1, the same on every machine."""
    return hashlib.sha256(text.encode()).digest()[0] & 1


def cross_fitted(scores, labels, folds):
    """A threshold for each case, calibrated on the cases of the other fold alone; on all where a fold is empty."""
    scores, labels, folds = np.asarray(scores), np.asarray(labels), np.asarray(folds)
    if len(set(folds.tolist())) < 2:
        return np.full(len(folds), calibrate(scores, labels))
    other = [calibrate(scores[folds != fold], labels[folds != fold]) for fold in (0, 1)]
    return np.array(other)[folds]


# ---- rows of the table


def counted(metric, verdict, ties_wrong):
    """(value, weight) of an item in a metric: scores are weighted means, shares from 0 to 1, ranks from 1."""
    if verdict.right is not None:
        return float(verdict.right[metric][0 if ties_wrong else 1]), 1.0
    if verdict.decision is not None:
        decision, gold = verdict.decision, bool(verdict.gold)
        if verdict.tie:  # the score is the threshold
            decision = (not gold) if ties_wrong else gold
        if metric == "precision":
            return float(gold), float(decision)
        if metric == "recall":
            return float(decision), float(gold)
        if metric == "F1":  # 2 tp / (2 tp + fp + fn)
            return float(decision and gold), (decision + gold) / 2
        return float(decision == gold), 1.0
    rank = verdict.rank if ties_wrong else verdict.best_rank
    if metric == "mean rank":
        return float(rank), 1.0
    return float(rank <= (int(metric[2:]) if metric.startswith("R@") else 1)), 1.0


def chance_of(metric, verdict, positives=0.5):
    """The expected value of a random scorer without ties; positives: share of true matches."""
    if verdict.right is not None:
        return WINOGROUND_CHANCE[metric]
    if verdict.decision is not None:
        return {"precision": positives, "F1": positives / (positives + 0.5)}.get(metric, 0.5)
    if metric == "mean rank":
        return (verdict.choices + 1) / 2
    return min(1.0, (int(metric[2:]) if metric.startswith("R@") else 1) / verdict.choices)


def table_row(row, verdicts, groups, clusters, tie="wrong", seed=0, interval=True):
    """The numbers of a Row (label, metric, groups, weights) over items, as a dict; percent, but for ranks.

    verdicts: of the items that could be scored;  groups: of each, a tuple of names;  clusters: of each, its image
    tie:      what the official rule counts a tie as, "wrong" or "right";  interval: without, low and high are None
    """
    place = {name: i for i, name in enumerate(row.groups)}
    mine = [(i, place[g]) for i, names in enumerate(groups) for g in names if g in place]
    head = {"row": row.label, "metric": row.metric, "n": len(mine)}
    if not mine:
        return head | {"ties": 0, "score": None, "pessimistic": None, "optimistic": None, "chance": None,
                       "low": None, "high": None}  # fmt: skip
    chosen = [verdicts[i] for i, _ in mine]
    group = np.array([g for _, g in mine])
    weights = np.array(row.weights) if row.weights else None
    wrong, right = ([counted(row.metric, v, ties_wrong) for v in chosen] for ties_wrong in (True, False))
    official = wrong if tie == "wrong" else right
    scale = 1 if row.metric == "mean rank" else 100
    scores = [scale * _mean(*np.array(values).T, group, weights) for values in (official, wrong, right)]
    positives = float(np.mean([v.gold for v in chosen]))
    chances = np.array([chance_of(row.metric, v, positives) for v in chosen])
    low = high = float("nan")
    if interval:
        low, high = _interval(*np.array(official).T, group, weights, [clusters[i] for i, _ in mine], seed)
    return head | {
        "ties": sum(v.tie for v in chosen),
        **dict(zip(("score", "pessimistic", "optimistic"), map(_number, scores))),
        "chance": _number(scale * _mean(chances, np.ones(len(chances)), group, weights)),
        "low": _number(scale * low),
        "high": _number(scale * high),
    }


def _number(value):
    return None if np.isnan(value) else round(float(value), 6)


def _mean(values, weights, group, group_weights):
    """Weighted mean over all, or mean of group means with their weights; groups without any weight are left out."""
    if group_weights is None:
        total = weights.sum()
        return values @ weights / total if total else float("nan")
    size = len(group_weights)
    sums, totals = (np.bincount(group, weights=w, minlength=size) for w in (values * weights, weights))
    there = totals > 0
    if not there.any():
        return float("nan")
    return (sums[there] / totals[there]) @ group_weights[there] / group_weights[there].sum()


def _interval(values, weights, group, group_weights, clusters, seed):
    """95 % percentile bootstrap of `_mean`; items of one image are drawn together."""
    _, cluster = np.unique(np.asarray(clusters), return_inverse=True)
    C = cluster.max() + 1
    rng = numpy_rng(seed, "probe bootstrap", C)
    means = []
    for _ in range(RESAMPLES):
        taken = np.bincount(rng.integers(C, size=C), minlength=C)[cluster]
        means.append(_mean(values, weights * taken, group, group_weights))
    means = [mean for mean in means if not np.isnan(mean)]
    return tuple(np.percentile(means, PERCENTILES)) if means else (float("nan"),) * 2
