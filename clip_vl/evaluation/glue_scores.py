"""GLUE's metrics over a whole split, and as published: unweighted means over minibatches."""

import numpy as np


def glue_scores(outputs, labels, metric):
    """{name: percent} of a split.

    outputs: (N, C) logits of the classes, or (N,) predicted scores;  labels: (N,)
    metric:  accuracy, f1 (with accuracy), matthews, or spearman (with pearson)
    """
    outputs, labels = np.asarray(outputs, np.float64), np.asarray(labels)
    if metric == "spearman":
        return {"spearman": 100 * spearman(outputs, labels), "pearson": 100 * pearson(outputs, labels)}
    predicted = outputs.argmax(1)
    accuracy = 100 * float(np.mean(predicted == labels))
    extra = {"f1": f1, "matthews": matthews}.get(metric)
    return ({metric: 100 * extra(predicted, labels)} if extra else {}) | {"accuracy": accuracy}


def batch_mean_scores(outputs, labels, metric, batch_size):
    """The published form of `glue_scores`' headline score: {"<metric>_batch_mean": percent}.

    Each batch is scored by itself, accuracies are rounded to hundredths of a percent, the last, smaller batch counts
    as much as the others, and STS-B's targets lose their fraction. An undefined score of a batch counts 0.
    """
    labels = np.asarray(labels).astype(np.int64)
    parts = [slice(first, first + batch_size) for first in range(0, len(labels), batch_size)]
    scores = [glue_scores(outputs[part], labels[part], metric)[metric] for part in parts]
    return {f"{metric}_batch_mean": float(np.mean(np.round(scores, 2) if metric == "accuracy" else scores))}


def f1(predicted, labels):
    """F1 of class 1; 0 where nothing of it was predicted or there."""
    hits = np.sum((predicted == 1) & (labels == 1))
    return float(2 * hits / max(1, np.sum(predicted == 1) + np.sum(labels == 1)))


def matthews(predicted, labels):
    """Matthews' correlation of two binary vectors; 0 where one of them is constant."""
    return pearson(predicted, labels)


def pearson(x, y):
    """Correlation; 0 where one side is constant."""
    x, y = (np.asarray(v, np.float64) - np.mean(v) for v in (x, y))
    norm = np.sqrt(np.sum(x * x) * np.sum(y * y))
    return float(np.sum(x * y) / norm) if norm > 0 else 0.0


def spearman(x, y):
    """Correlation of the ranks, ties at their mean rank."""
    from scipy.stats import rankdata

    return pearson(rankdata(x), rankdata(y))
