"""What a retrieval leaves of each query, and queries to look at: best and worst, both ways, with their top five."""

import io

import numpy as np

from clip_vl.engine.random import numpy_rng
from clip_vl.engine.readers.colours import to_rgb
from clip_vl.evaluation.recall import WAYS
from clip_vl.evaluation.retrieval_folds import TOP
from clip_vl.reports.answers import THUMBNAIL, jpeg_uri, thumbnail
from clip_vl.reports.saliency import add_saliency


def rows_of(pairs, folds):
    """A row for each query: id, whether it is right at once (recall at 1), its ranks, and the image it is about."""
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


def gallery_of(pairs, fold, count, note, seed, look=None, looks=0):
    """Cards of the best and the worst queries of a fold, both ways; `looks` of them with the saliency of a true pair.

    look: (row, text) of the source -> (picture as a data URI or None, method)
    """
    source, (names, _) = pairs.source, pairs.names()

    def text(place):
        return source.text(int(pairs.numbers[fold.texts[place]]))

    def picture(place):
        return source.read(int(pairs.rows[fold.images[place]]))

    cards, wanted = [], []
    for way, looks_here in zip(WAYS, (-(-looks // 2), looks // 2)) if count else ():
        ranks = getattr(fold.ranks, way)[1]
        queries = choose_queries(ranks, count, seed)
        looked_at = in_turn(queries, count)[:looks_here]
        for query, places, scores in zip(queries, *fold.nearest(way, queries)):
            found = list(zip(places.tolist(), scores.tolist()))
            if way == "text_to_image":
                own = names[fold.images[fold.image_of_text[query]]]
                best = [(names[fold.images[place]], score, picture(place)) for place, score in found]
                cards.append(text_card(text(query), own, best, ranks[query], note))
                true_pair = fold.image_of_text[query], text(query)
            else:
                own = [text(place) for place in np.flatnonzero(fold.image_of_text == query)]
                best = [(text(place), score) for place, score in found]
                cards.append(image_card(picture(query), names[fold.images[query]], own, best, ranks[query], note))
                true_pair = query, own[0]
            if query in looked_at:
                place, caption = true_pair
                wanted.append((cards[-1], [(caption, int(pairs.rows[fold.images[place]]), caption)]))
    return {"cards": cards} | ({"note": add_saliency(wanted, look)} if wanted else {})


def choose_queries(ranks, count, seed=0):
    """`count` queries, half of those with the lowest ranks and half with the highest, equal ranks drawn from."""
    order = numpy_rng(seed, "gallery").permutation(len(ranks))
    by_rank = order[np.argsort(ranks[order], kind="stable")]
    half = min(-(-count // 2), len(ranks))
    worst = by_rank[half:][-(count // 2) :] if count // 2 else by_rank[:0]
    return np.concatenate([by_rank[:half], worst[::-1]])


def in_turn(queries, count):
    """What `choose_queries` gives for a count, a best one and a worst one in turn."""
    half = min(-(-count // 2), len(queries))
    return [queries[place] for place in sorted(range(len(queries)), key=lambda place: (place % half, place))]


def image_card(data, name, own, found, rank, note):
    """A card of an image as the query. data: its bytes;  own: its texts;  found: [(text, score)] of the top five"""
    return {"image": thumbnail(data), "title": name, "truth_label": "its own", "truth": [[text, None] for text in own],
            "predictions": [[text, round(score, 4)] for text, score in found], "correct": bool(rank == 1),
            "note": f"image to text, rank {rank:,}; {note}"}  # fmt: skip


def text_card(text, own, found, rank, note):
    """A card of a text as the query. own: name of its image;  found: [(name, score, bytes)] of the top five"""
    pictures = strip([data for *_, data in found])
    return {"image": pictures, "title": text, "truth_label": "its image", "truth": [[own, None]],
            "predictions": [[name, round(score, 4)] for name, score, _ in found], "correct": bool(rank == 1),
            "note": f"text to image, rank {rank:,}, the pictures from left to right; {note}"}  # fmt: skip


def strip(pictures):
    """Bytes of image files -> one small JPEG with all of them side by side, as a data URI."""
    from PIL import Image

    side = 2 * THUMBNAIL // TOP
    sheet = Image.new("RGB", (len(pictures) * side, side), "white")
    for place, data in enumerate(pictures):
        with Image.open(io.BytesIO(data)) as image:
            image = to_rgb(image)
        image.thumbnail((side - 4, side - 4))
        sheet.paste(image, (place * side + (side - image.width) // 2, (side - image.height) // 2))
    return jpeg_uri(sheet)
