"""Ranks of the true caption in each file of a probe that counts them (CREPE, arXiv:2212.07796, section 3.3)."""

import numpy as np

KS = (1, 3, 5, 10)


def rank_facts(probe, evaluated):
    """{"ranks": {subset: {"n", "R@1", "R@1 std", ..., "mean rank", "median rank"}}}; {} of one without rows of R@1.

    evaluated: [(item, crops, block, Verdict)]; an item's subset is its first group. A rank is 1 + how many negatives
    score as high as the true caption or higher. R@k and its standard deviation over the items (of hits that are 0 or
    100) are in percent; the median is floored.
    """
    if not any(row.metric == "R@1" for row in probe.rows):
        return {}
    ranks = {}
    for item, *_, verdict in evaluated:
        ranks.setdefault(item.groups[0], []).append(verdict.rank)
    return {"ranks": {subset: _facts(np.array(values)) for subset, values in ranks.items()}}


def _facts(ranks):
    hits = {k: 100.0 * (ranks <= k) for k in KS}
    recalls = {f"R@{k}{name}": round(float(f(hits[k])), 6) for k in KS for name, f in (("", np.mean), (" std", np.std))}
    return {"n": len(ranks), **recalls, "mean rank": round(float(ranks.mean()), 6),
            "median rank": int(np.floor(np.median(ranks)))}  # fmt: skip
