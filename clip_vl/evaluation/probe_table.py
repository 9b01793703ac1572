"""From scores of images and captions to the verdict on every item, the rows of samples.jsonl, and the table."""

import numpy as np

from clip_vl.evaluation.probe_scores import cross_fitted, fold_of, table_row, verdict_on


def evaluate_probe(part, score_of, damaged_crops, threshold):
    """([(item, crops, block, Verdict)], items without a usable image) of a probe.

    part:  (Probe, items, missing) of a `Plan`;  score_of: {(crop, text): score}
    damaged_crops: bool (N,), images that could not be read;  threshold: of a match, None to calibrate one
    """
    probe, items, missing = part
    damaged = [item for item, crops, _ in items if any(damaged_crops[c] for c in crops)]
    gone = {item.id for item in damaged}
    usable = [entry for entry in items if entry[0].id not in gone]
    blocks = [
        np.array([[score_of[c, t] for t in texts] for c in crops], dtype=np.float32) for _, crops, texts in usable
    ]
    thresholds = np.zeros(len(usable))
    if probe.kind == "match":
        labels, folds = ([f(item) for item, *_ in usable] for f in (lambda i: i.gold, lambda i: fold_of(i.fold)))
        scores = np.array([block[:, 0].mean() for block in blocks])
        fixed = threshold is not None
        thresholds = np.full(len(usable), threshold) if fixed else cross_fitted(scores, labels, folds)
    verdicts = [verdict_on(probe.kind, b, e[0].gold, t) for e, b, t in zip(usable, blocks, thresholds)]
    return [(*entry[:2], block, verdict) for entry, block, verdict in zip(usable, blocks, verdicts)], missing + damaged


def sample_rows(probe, evaluated, missing):
    """Rows of samples.jsonl: every item, also one that could not be scored; correct: by the official rule."""
    for item, _, block, v in evaluated:
        row = {"id": f"{probe.name}/{item.id}", "probe": probe.name, "subset": item.groups[0],
               "image": item.images[0].name, "scores": np.asarray(block, dtype=float).round(6).tolist()}  # fmt: skip
        loose = probe.tie == "right"
        if v.right is not None:
            row |= {name: int(right[loose]) for name, right in v.right.items()} | {
                "correct": int(v.right["group"][loose])
            }
        elif v.decision is not None:
            row |= {
                "decision": int(v.decision),
                "gold": item.gold,
                "correct": int(v.decision == bool(item.gold) and not v.tie),
            }
        else:
            row |= {"rank": v.rank, "correct": int((v.best_rank if loose else v.rank) == 1)}
        yield row | {"tie": int(v.tie)}
    for item in missing:
        yield {"id": f"{probe.name}/{item.id}", "probe": probe.name, "subset": item.groups[0],
               "image": item.images[0].name, "missing_image": 1}  # fmt: skip


def table_of(probe, evaluated, missing, seed, blind=()):
    """The rows of the table, dicts.

    blind: the items that `evaluate_probe` scored by the captions alone; rows then have that score where a model chooses
           among captions or decides about one. A tie counts half there, as a guess between two captions
    """
    verdicts, groups = [v for *_, v in evaluated], [item.groups for item, *_ in evaluated]
    images = [item.images[0].name for item, *_ in evaluated]
    for row in probe.rows:
        lost = sum(any(group in row.groups for group in item.groups) for item in missing)
        numbers = table_row(row, verdicts, groups, images, probe.tie, seed)
        given_away = None
        if blind and probe.kind in ("captions", "match"):
            both = table_row(row, [v for *_, v in blind], groups, images, interval=False)
            given_away = None if both["score"] is None else (both["pessimistic"] + both["optimistic"]) / 2
        yield {"probe": probe.name, **numbers, "blind": given_away, "missing": lost, "tie_counts_as": probe.tie}


def flat(table):
    """{metric/probe/row: score, with _n, _low and _high beside it}, which the report shows."""
    values = {}
    for row in table:
        name = f"{row['metric']}/{row['probe']}/{row['row']}"
        if row["score"] is not None:
            values |= {
                name: row["score"],
                f"{name}_n": row["n"],
                f"{name}_low": row["low"],
                f"{name}_high": row["high"],
            }
    return values
