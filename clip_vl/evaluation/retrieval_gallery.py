"""Queries of a retrieval to look at, best and worst, both ways, with their top five."""

import base64
import io

import numpy as np

from clip_vl.engine.random import numpy_rng
from clip_vl.evaluation.gallery import THUMBNAIL, thumbnail

TOP = 5


def choose_queries(ranks, count, seed=0):
    """`count` queries, half of those with the lowest ranks and half with the highest, equal ranks drawn from."""
    order = numpy_rng(seed, "gallery").permutation(len(ranks))
    by_rank = order[np.argsort(ranks[order], kind="stable")]
    half = min(-(-count // 2), len(ranks))
    worst = by_rank[half:][-(count // 2) :] if count // 2 else by_rank[:0]
    return np.concatenate([by_rank[:half], worst[::-1]])


def image_card(data, name, own, found, rank, note):
    """A card of an image as the query. data: its bytes;  own: its texts;  found: [(text, score)] of the top five"""
    return {"image": thumbnail(data), "title": name, "truth_label": "its own", "truth": [[text, 0.0] for text in own],
            "predictions": [[text, round(score, 4)] for text, score in found], "correct": bool(rank == 1),
            "note": f"image to text, rank {rank:,}; {note}"}  # fmt: skip


def text_card(text, own, found, rank, note):
    """A card of a text as the query. own: name of its image;  found: [(name, score, bytes)] of the top five"""
    pictures = strip([data for *_, data in found])
    return {"image": pictures, "title": text, "truth_label": "its image", "truth": [[own, 0.0]],
            "predictions": [[name, round(score, 4)] for name, score, _ in found], "correct": bool(rank == 1),
            "note": f"text to image, rank {rank:,}, the pictures from left to right; {note}"}  # fmt: skip


def strip(pictures):
    """Bytes of image files -> one small JPEG with all of them side by side, as a data URI."""
    from PIL import Image

    side = 2 * THUMBNAIL // TOP
    sheet = Image.new("RGB", (len(pictures) * side, side), "white")
    for place, data in enumerate(pictures):
        with Image.open(io.BytesIO(data)) as image:
            image = image.convert("RGB")
        image.thumbnail((side - 4, side - 4))
        sheet.paste(image, (place * side + (side - image.width) // 2, (side - image.height) // 2))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
