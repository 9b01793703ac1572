"""What the report of a classification shows, and the rows it leaves: predictions, confusion, the surest mistakes."""

import numpy as np

from clip_vl.engine.random import numpy_rng
from clip_vl.reports.images import thumbnail

TOP = 5


def sample_rows(images, scores):
    """Rows of samples.jsonl: id, classes by name, and for one class an image whether it is right and how sure.

    images: says ids, labels, class_names and multi_label;  scores: (N, C) NumPy, of which the largest is predicted
    """
    names = images.class_names
    if images.multi_label:
        return [
            {"id": name, "labels": [names[c] for c in np.flatnonzero(own)], "scores": [round(float(s), 6) for s in row]}
            for name, own, row in zip(images.ids, images.labels, scores)
        ]
    best = scores.argmax(1)
    return [
        {"id": name, "label": names[label], "prediction": names[choice], "correct": bool(choice == label),
         "score": round(float(row[choice]), 6), "label_score": round(float(row[label]), 6)}
        for name, label, choice, row in zip(images.ids, images.labels.tolist(), best.tolist(), scores)
    ]  # fmt: skip


def confusion(labels, predictions, class_names, columns=None, title="Confusion"):
    """{"title", "classes", "columns", "counts"}: [class, prediction, how often] where that is not 0.

    columns: names of the predictions, where these are not classes
    """
    wide = len(columns or class_names)
    cells, counts = np.unique(np.asarray(labels) * wide + np.asarray(predictions), return_counts=True)
    found = [[int(cell) // wide, int(cell) % wide, int(count)] for cell, count in zip(cells, counts)]
    return {"title": title, "classes": list(class_names), "columns": columns, "counts": found}


def class_gallery(images, scores, count=24, seed=0):
    """gallery.json: cards of the surest mistakes and as many that are right, drawn at random, and the confusion matrix.

    images: as in `sample_rows`, with read(row) -> bytes of an image file
    """
    if images.multi_label:
        return {"cards": []}
    predictions = scores.argmax(1)
    hits = predictions == images.labels
    surest = np.argsort(-scores.max(1), kind="stable")
    wrong = surest[~hits[surest]][: count // 2]
    right = numpy_rng(seed, "gallery").permutation(np.flatnonzero(hits))[: count - len(wrong)]
    cards = [_card(images, row, scores[row], bool(hits[row])) for row in [*wrong, *right]]
    return {"cards": cards, "confusion": confusion(images.labels, predictions, images.class_names)}


def _card(images, row, scores, correct):
    best = np.argsort(-scores, kind="stable")[:TOP]
    return {
        "image": thumbnail(images.read(row)), "title": images.ids[row], "truth_label": "its class",
        "truth": [[images.class_names[images.labels[row]], round(float(scores[images.labels[row]]), 4)]],
        "predictions": [[images.class_names[c], round(float(scores[c]), 4)] for c in best if scores[c] > 0],
        "correct": correct, "note": "",
    }  # fmt: skip
