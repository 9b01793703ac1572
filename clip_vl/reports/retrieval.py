"""The row of each query, and queries for the report: best and worst, both ways, with their top five."""

import numpy as np

from clip_vl.engine.random import numpy_rng
from clip_vl.evaluation.recall import WAYS
from clip_vl.evaluation.retrieval_folds import TOP
from clip_vl.reports.images import THUMBNAIL, strip, thumbnail


def rows_of(pairs, folds):
    """A row for each query: id, whether recall at 1 counts it, its ranks, and the image it belongs to."""
    images, texts = pairs.names()
    for way in WAYS:
        for fold in folds:
            best, worst = getattr(fold.ranks, way)
            for query in range(len(best)):
                if way == "text_to_image":
                    name = texts[fold.texts[query]]
                    text = {"query": pairs.source.text(int(pairs.numbers[fold.texts[query]]))}
                    image = images[fold.images[fold.image_of_text[query]]]
                else:
                    name, text = images[fold.images[query]], {}
                    image = name
                found = {"rank": int(worst[query]), "rank_optimistic": int(best[query]), "image": image, **text}
                yield {"id": f"{way}/{name}", "group": way, "correct": int(worst[query] <= 1), **found}


def gallery_of(pairs, fold, count, note, seed, saliency=None, with_saliency=0):
    """Cards of the best and the worst queries of a fold, both ways; `with_saliency` of them show that of a true pair.

    saliency: (row, text) of the source -> (image as a data URI or None, method)
    """
    source, (names, _) = pairs.source, pairs.names()

    def text(position):
        return source.text(int(pairs.numbers[fold.texts[position]]))

    def image(position):
        return source.read(int(pairs.rows[fold.images[position]]))

    cards, wanted = [], []
    for way, share in zip(WAYS, (-(-with_saliency // 2), with_saliency // 2)) if count else ():
        ranks = getattr(fold.ranks, way)[1]
        queries = choose_queries(ranks, count, seed)
        explained = in_turn(queries, count)[:share]
        for query, positions, scores in zip(queries, *fold.nearest(way, queries)):
            found = list(zip(positions.tolist(), scores.tolist()))
            if way == "text_to_image":
                own = names[fold.images[fold.image_of_text[query]]]
                best = [(names[fold.images[position]], score, image(position)) for position, score in found]
                cards.append(text_card(text(query), own, best, ranks[query], note))
                true_image, caption = fold.image_of_text[query], text(query)
            else:
                own = [text(position) for position in np.flatnonzero(fold.image_of_text == query)]
                best = [(text(position), score) for position, score in found]
                cards.append(image_card(image(query), names[fold.images[query]], own, best, ranks[query], note))
                true_image, caption = query, own[0]
            if query in explained:
                wanted.append((cards[-1], [(caption, int(pairs.rows[fold.images[true_image]]), caption)]))
    if not wanted:
        return {"cards": cards}
    from clip_vl.reports.saliency import add_saliency

    return {"cards": cards, "note": add_saliency(wanted, saliency)}


def choose_queries(ranks, count, seed=0):
    """`count` queries, half of those with the lowest ranks and half with the highest, drawn among equal ranks."""
    order = numpy_rng(seed, "gallery").permutation(len(ranks))
    by_rank = order[np.argsort(ranks[order], kind="stable")]
    half = min(-(-count // 2), len(ranks))
    worst = by_rank[half:][-(count // 2) :] if count // 2 else by_rank[:0]
    return np.concatenate([by_rank[:half], worst[::-1]])


def in_turn(queries, count):
    """The queries that `choose_queries` gives for a count, a best one and a worst one in turn."""
    half = min(-(-count // 2), len(queries))
    return [queries[index] for index in sorted(range(len(queries)), key=lambda index: (index % half, index))]


def image_card(data, name, own, found, rank, note):
    """A card of an image as the query. data: its bytes;  own: its texts;  found: [(text, score)] of the top five"""
    return {"image": thumbnail(data), "title": name, "truth_label": "its own", "truth": [[text, None] for text in own],
            "predictions": [[text, round(score, 4)] for text, score in found], "correct": bool(rank == 1),
            "note": f"image to text, rank {rank:,}; {note}"}  # fmt: skip


def text_card(text, own, found, rank, note):
    """A card of a text as the query. own: name of its image;  found: [(name, score, bytes)] of the top five"""
    images = strip([data for *_, data in found], 2 * THUMBNAIL // TOP)
    return {"image": images, "title": text, "truth_label": "its image", "truth": [[own, None]],
            "predictions": [[name, round(score, 4)] for name, score, _ in found], "correct": bool(rank == 1),
            "note": f"text to image, rank {rank:,}, the images from left to right; {note}"}  # fmt: skip
