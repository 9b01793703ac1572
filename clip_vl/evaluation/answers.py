"""Answering accuracy, overall and for each kind of question, with the number of questions and an interval."""

import numpy as np

from clip_vl.engine.errors import DataError
from clip_vl.evaluation.bootstrap import interval


def answer_report(scores, groupings=None):
    """Summarise per-question scores.

    scores:    (N,), each question's score in 0..1 (soft score, or leave-one-out accuracy, of the predicted answer)
    groupings: {"answer_type": N labels, "question_type": N labels, ...}; questions labelled "" are in no group
    returns:   flat dict in percent: "accuracy", its 95 % interval "accuracy_low" and "accuracy_high", and "accuracy_n",
               then the same for every group, largest first, as "accuracy/answer_type/yes/no" and so on
    errors:    DataError when there is nothing to average
    """
    scores = np.asarray(scores, dtype=np.float64)
    if not len(scores):
        raise DataError("no question was scored: the split is empty, or none of its questions has an answer")
    report = _row("accuracy", scores)
    for grouping, labels in (groupings or {}).items():
        labels = np.asarray(labels)
        names, sizes = np.unique(labels, return_counts=True)
        for name in names[np.argsort(-sizes, kind="stable")]:
            if name:
                report |= _row(f"accuracy/{grouping}/{name}", scores[labels == name])
    return report


def _row(name, scores):
    low, high = interval(scores)
    return {
        name: 100 * float(scores.mean()),
        f"{name}_n": len(scores),
        f"{name}_low": 100 * low,
        f"{name}_high": 100 * high,
    }
