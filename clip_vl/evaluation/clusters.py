"""How well clusters of features agree with classes: AMI, NMI, ARI, and accuracy after the best matching of the two."""

import numpy as np

from clip_vl.engine.k_means import k_means
from clip_vl.engine.random import derive_seed, numpy_rng
from clip_vl.evaluation.bootstrap import interval

FOLDS = 20  # of the jackknife
NORMAL = 1.96  # standard errors on each side of a 95 % interval


def cluster(features, k, iterations=100, restarts=5, seed=0):
    """int64 (N,) clusters of float32 features (N, D): Euclidean k-means, the best of the restarts."""
    features = np.ascontiguousarray(features, dtype=np.float32)
    labels, _ = k_means(features, k, iterations, restarts, derive_seed(seed, "k-means") % 2**31)
    return labels.astype(np.int64)


def best_matching(clusters, labels, num_clusters, num_classes):
    """int64 (num_clusters,): the class of each cluster, -1 for none; most images agree (Hungarian assignment)."""
    from scipy.optimize import linear_sum_assignment

    table = np.bincount(clusters * num_classes + labels, minlength=num_clusters * num_classes)
    rows, columns = linear_sum_assignment(table.reshape(num_clusters, num_classes), maximize=True)
    matched = np.full(num_clusters, -1)
    matched[rows] = columns
    return matched


def agreement(clusters, labels):
    """{"AMI", "NMI", "ARI"} in percent; mutual information is normalised by the arithmetic mean of the entropies."""
    from sklearn import metrics

    return {
        "AMI": 100 * metrics.adjusted_mutual_info_score(labels, clusters),
        "NMI": 100 * metrics.normalized_mutual_info_score(labels, clusters),
        "ARI": 100 * metrics.adjusted_rand_score(labels, clusters),
    }


def cluster_scores(clusters, labels, num_clusters, num_classes, seed=0):
    """(a flat dict of AMI, NMI, ARI, matched_accuracy in percent, n and 95 % intervals, matched classes (N,)).

    The intervals are of the images, the clusters as they are. The bootstrap would repeat images, which mutual
    information takes for agreement; so it is the jackknife over 20 random parts, each left out once.
    """
    whole, N = agreement(clusters, labels), len(labels)
    folds = min(FOLDS, N)
    part = numpy_rng(seed, "jackknife", N).permutation(N) % folds
    left = [agreement(clusters[part != fold], labels[part != fold]) for fold in range(folds)]
    found = {}
    for name, value in whole.items():
        values = np.array([each[name] for each in left])
        error = NORMAL * np.sqrt((folds - 1) / folds * ((values - values.mean()) ** 2).sum())
        low, high = max(value - error, -100.0 if name != "NMI" else 0.0), min(value + error, 100.0)
        found |= {name: value, f"{name}_n": N, f"{name}_low": low, f"{name}_high": high}
    matched = best_matching(clusters, labels, num_clusters, num_classes)[clusters]
    low, high = interval(100.0 * (matched == labels), seed)
    found |= {"matched_accuracy": 100 * (matched == labels).mean(), "matched_accuracy_n": N,
              "matched_accuracy_low": low, "matched_accuracy_high": high}  # fmt: skip
    return found, matched
