"""Answering accuracy, overall and for each kind of question, with the number of questions and an interval."""

import numpy as np
import torch

from clip_vl.engine import dist
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


def consistency(scores, groups, name="consistency"):
    """Share of the groups in which every score is 1, in percent, as a flat dict like `answer_report`'s.

    scores: (N,) 0 or 1;  groups: N labels, such as the statement that a row is about
    """
    whole = {}
    for score, group in zip(scores, groups):
        whole[group] = whole.get(group, True) and score == 1
    return _row(name, np.array(list(whole.values()), dtype=np.float64))


@torch.no_grad()
def predict(model, logits_of, batches, autocast, top=5, one_is_right=False):
    """Answers to all questions, from all ranks: [(row, the best classes, their probabilities)], by row.

    model:     put into evaluation mode, with rank 0's buffers everywhere; logits_of: (model, batch) -> (B, A)
    batches:   this rank's, on the device, with their `rows`;  autocast: a context to compute in
    one_is_right: the probabilities are a softmax, for a model of the cross entropy; else sigmoids: each answer is
               judged apart, as the soft scores of VQA are
    The logits decide the order: rounded to 1, two probabilities may be equal.
    """
    model, found = dist.unwrap(model).eval(), []
    for batch in batches:
        with autocast:
            logits = logits_of(model, batch).float()
        best = logits.topk(min(top, logits.shape[1]), dim=1).indices
        probabilities = logits.softmax(1) if one_is_right else logits.sigmoid()
        found += zip(batch["rows"].tolist(), best.tolist(), probabilities.gather(1, best).tolist())
    return sorted(row for rows in dist.gather(found) for row in rows)


def soft_scores(annotations, predictions):
    """The annotators' score (0..1) of the first answer of each prediction of `predict`."""
    scores = []
    for row, classes, _ in predictions:
        ids, values = annotations.answers(row)
        scores.append(float(values[ids == classes[0]].sum()))
    return scores


def batch_accuracy(logits, scores):
    """Mean score of the best answer, a scalar in [0, 1] on the device. logits, scores: (B, A)."""
    return scores.gather(1, logits.argmax(1, keepdim=True)).mean()


def majority_accuracy(train, valid, num_answers):
    """{"majority_accuracy": percent} of always giving the answer that earns most on the training questions.

    train, valid: annotations; without a validation there is nothing to measure
    """
    if valid is None:
        return {}
    best = int(train.answer_totals(num_answers).argmax())
    return {"majority_accuracy": 100 * float(valid.answer_totals(num_answers)[best]) / len(valid)}


def headlines(report):
    """What a row of the log holds of a report: accuracy with its interval, consistency, that of each answer type."""
    wanted = ("accuracy", "accuracy_n", "accuracy_low", "accuracy_high", "consistency")
    return {f"valid_{name}": v for name, v in report.items() if name in wanted or _is_answer_type(name)}


def _is_answer_type(name):
    return name.startswith("accuracy/answer_type/") and not name.endswith(("_n", "_low", "_high"))


def _row(name, scores):
    low, high = interval(scores)
    return {
        name: 100 * float(scores.mean()),
        f"{name}_n": len(scores),
        f"{name}_low": 100 * low,
        f"{name}_high": 100 * high,
    }
