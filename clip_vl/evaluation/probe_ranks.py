"""Ranks of the true caption in each file of a probe that counts them (CREPE, arXiv:2212.07796, section 3.3)."""

import numpy as np

from clip_vl.engine import dist

KS = (1, 3, 5, 10)


def rank_facts(probe, judged):
    """{"ranks": {subset: {"n", "R@1", "R@1 std", ..., "mean rank", "median rank"}}}; {} of one without rows of R@1.

    judged: [(item, crops, block, Verdict)]; an item's subset is its first group. A rank is 1 + how many negatives score
    as high as the true caption or higher. R@k and its standard deviation over the items (of hits that are 0 or 100) are
    in percent; the median is floored.
    """
    if not any(row.metric == "R@1" for row in probe.rows):
        return {}
    ranks = {}
    for item, *_, verdict in judged:
        ranks.setdefault(item.groups[0], []).append(verdict.rank)
    return {"ranks": {subset: _facts(np.array(values)) for subset, values in ranks.items()}}


def _facts(ranks):
    hits = {k: 100.0 * (ranks <= k) for k in KS}
    recalls = {f"R@{k}{name}": round(float(f(hits[k])), 6) for k in KS for name, f in (("", np.mean), (" std", np.std))}
    return {"n": len(ranks), **recalls, "mean rank": round(float(ranks.mean()), 6),
            "median rank": int(np.floor(np.median(ranks)))}  # fmt: skip


def print_ranks(facts):
    """One line for each file. facts: {name of a probe: its facts, with those of `rank_facts` among them}"""
    for name, of_probe in facts.items():
        for subset, found in of_probe.get("ranks", {}).items():
            recalls = "  ".join(f"R@{k} {found[f'R@{k}']:.2f} (std {found[f'R@{k} std']:.2f})" for k in KS)
            ranks = f"mean rank {found['mean rank']:.2f}, median {found['median rank']}"
            dist.print0(f"{name} {subset}: {recalls}  {ranks}, n {found['n']:,}")
