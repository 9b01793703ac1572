"""Validation samples for the report: an image, its true answers or captions, and the model's top five."""

import numpy as np

from clip_vl.engine.random import numpy_rng
from clip_vl.reports.images import thumbnail

RIGHT = 0.5  # soft score from which an answer counts as right: two of ten people said so


def build_gallery(annotations, predictions, scores, answers, image_of=None, count=24, seed=0):
    """The cards of gallery.json: `count` questions drawn at random, half right and half wrong where there are enough.

    predictions: (row, classes, probabilities) per question, best first; scores: the soft score each one earned
    answers:     the name of each class;  image_of: row -> bytes of an image file, or None for cards without
    """
    order = numpy_rng(seed, "gallery").permutation(len(scores))
    wrong = [i for i in order if scores[i] < RIGHT]
    right = [i for i in order if scores[i] >= RIGHT]
    some_wrong = max(count // 2, count - len(right))
    chosen = sorted([*wrong[:some_wrong], *right[: count - min(some_wrong, len(wrong))]], key=order.tolist().index)
    return {"cards": [_card(annotations, *predictions[i], scores[i], answers, image_of) for i in chosen]}


def _card(annotations, row, classes, probabilities, score, answers, image_of):
    ids, values = annotations.answers(row)
    truth = sorted(zip([answers[i] for i in ids], np.asarray(values).tolist()), key=lambda pair: -pair[1])
    return {
        "image": thumbnail(image_of(row)) if image_of else "",
        "title": annotations.sentence(row),
        "truth": [list(pair) for pair in truth],
        "predictions": [[answers[c], round(p, 4)] for c, p in zip(classes, probabilities)],
        "correct": score >= RIGHT,
        "note": annotations.question_type(row),
    }


def retrieval_gallery(held_out, images, texts, count=24, seed=0):
    """The same for retrieval: `count` images and their five nearest texts; half are images whose nearest is another's.

    held_out: the pairs, as `evaluate_retrieval` takes them;  images: (N, D), texts: (M, D), L2-normalised
    """
    source, rows, numbers = held_out.source, held_out.rows, held_out.numbers
    image_of_text = held_out.image_of_text
    order = numpy_rng(seed, "gallery").permutation(len(rows))[: 10 * count]
    scores = images[order] @ texts.T
    best = scores.topk(min(5, len(numbers)), dim=1)
    hits = image_of_text[best.indices[:, 0].numpy()] == order
    wrong, right = np.flatnonzero(~hits), np.flatnonzero(hits)
    some_wrong = max(count // 2, count - len(right))
    cards = []
    for place in sorted([*wrong[:some_wrong], *right[: count - min(some_wrong, len(wrong))]]):
        image = order[place]
        own = np.flatnonzero(image_of_text == image)
        cards.append(
            {
                "image": thumbnail(source.read(int(rows[image]))),
                "title": source.name(int(rows[image])),
                "truth_label": "its own",
                "truth": [[source.text(int(numbers[t])), round(scores[place, t].item(), 3)] for t in own],
                "predictions": [
                    [source.text(int(numbers[t])), round(value, 3)]
                    for t, value in zip(best.indices[place].tolist(), best.values[place].tolist())
                ],
                "correct": bool(hits[place]),
                "note": "image to text, cosine",
            }
        )
    return {"cards": cards}
