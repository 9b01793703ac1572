"""Heat over a picture: in the right corner, in grey elsewhere, the canvas cut off; and what the report says of it."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from clip_vl.reports.probes import pairs_to_compare
from clip_vl.reports.retrieval import choose_queries, in_turn
from clip_vl.reports.saliency import add_saliency, drawn


def pixels(uri):
    """A data URI -> (H, W, 3) float."""
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))), float)


def colourfulness(picture):
    return picture.max(2) - picture.min(2)


@pytest.fixture
def green():
    return np.broadcast_to(np.array([20, 200, 20], np.uint8)[:, None, None], (3, 60, 90)).copy()


def test_the_hot_cell_is_red_in_its_corner_and_the_rest_is_grey(green):
    heat = np.zeros((2, 3), np.float32)
    heat[0, 2] = 1
    uri, method = drawn(green, (heat, "Grad-CAM"))
    picture = pixels(uri)
    assert method == "Grad-CAM" and picture.shape == (60, 90, 3)
    red, grn, blu = picture[5, 84]
    assert red > 180 and grn < 80 and blu < 80
    assert colourfulness(picture[45:, :40]).max() < 8 and colourfulness(picture[:15, :15]).max() < 8


def test_only_the_picture_on_its_canvas_is_shown(green):
    green[:, :, :30] = 0  # padding at the left
    uri, _ = drawn(green, (np.zeros((2, 3), np.float32), ""), box=np.array([0, 30, 60, 60]))
    picture = pixels(uri)
    assert picture.shape == (60, 60, 3) and picture.min() > 100


def test_without_heat_there_is_no_picture_and_one_sentence_for_all_cards(green):
    cards = [{}, {}]
    look = lambda text: drawn(green, (None, "it has no cells"))  # noqa: E731
    note = add_saliency([(card, [("a", "a"), ("b", "b")]) for card in cards], look)
    assert note == "There is no saliency map for this tower: it has no cells." and cards == [{"saliency": []}] * 2


def test_cards_get_a_picture_per_caption_and_the_note_names_the_method(green):
    card = {}
    note = add_saliency([(card, [("<b>", 1, "<b>"), ("plain", 1, "plain")])],
                        lambda row, text: drawn(green, (np.ones((1, 1), np.float32), "Grad-CAM")))  # fmt: skip
    assert [caption for caption, _ in card["saliency"]] == ["<b>", "plain"]
    assert note.startswith("Saliency by Grad-CAM: ")


def test_a_probe_shows_the_true_caption_and_the_strongest_other_or_both_pictures():
    several = SimpleNamespace(captions=("true", "weak", "strong"), images=("i",))
    assert pairs_to_compare(several, [7], [[0.3, 0.1, 0.9]]) == [("true", 7, "true"), ("strong", 7, "strong")]
    one = SimpleNamespace(captions=("true",), images=("i", "j"))
    assert pairs_to_compare(one, [7, 8], [[0.3], [0.4]]) == [
        ("true", 7, "true"),
        ("true (the other image)", 8, "true"),
    ]


@pytest.mark.parametrize("queries, count, best", [(20, 7, 4), (5, 4, 2), (3, 24, 3)])
def test_best_and_worst_queries_take_turns(queries, count, best):
    ranks = np.arange(1, queries + 1)
    chosen = choose_queries(ranks, count)
    turns = [int(ranks[query]) for query in in_turn(chosen, count)]
    assert sorted(turns) == sorted(ranks[chosen])
    assert turns[:3] == ([1, queries, 2] if best < queries else [1, 2, 3])
