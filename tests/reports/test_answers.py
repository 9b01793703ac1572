"""Which questions are shown, and what stands on a card."""

import base64
import io
from types import SimpleNamespace

import numpy as np
from PIL import Image

from clip_vl.reports.answers import build_gallery
from clip_vl.reports.images import THUMBNAIL, strip, thumbnail

ANSWERS = ["yes", "no", "red"]
ANNOTATIONS = SimpleNamespace(
    answers=lambda row: ([0, 1], [0.3, 1.0]),
    sentence=lambda row: f"question {row}",
    question_type=lambda row: "is the",
    image_id=lambda row: str(row),
)


def jpeg(_image_id):
    buffer = io.BytesIO()
    Image.new("RGB", (800, 400), "red").save(buffer, "JPEG")
    return buffer.getvalue()


def gallery(scores, **more):
    predictions = [(row, [1, 0, 2], [0.9, 0.05, 0.01]) for row in range(len(scores))]
    return build_gallery(ANNOTATIONS, predictions, scores, ANSWERS, jpeg, **more)["cards"]


def test_half_of_the_cards_are_wrong_answers_where_there_are_enough():
    cards = gallery([0.0] * 50 + [1.0] * 50)
    assert len(cards) == 24 and sum(card["correct"] for card in cards) == 12
    assert sum(card["correct"] for card in gallery([0.0] * 2 + [1.0] * 50)) == 22
    assert sum(card["correct"] for card in gallery([0.0] * 50 + [1.0] * 2)) == 2
    assert [len(gallery([0.0] * n)) for n in (3, 30)] == [3, 24]


def test_a_thumbnail_has_the_colours_that_models_see():
    buffer = io.BytesIO()
    Image.fromarray(np.full((8, 8), 100 << 8, dtype=np.uint16)).save(buffer, "TIFF")
    for shown in (thumbnail(buffer.getvalue()), strip([buffer.getvalue()] * 5, 128)):
        pixels = np.array(Image.open(io.BytesIO(base64.b64decode(shown.split(",")[1]))))
        assert np.abs(pixels.reshape(-1, 3).astype(int) - 100).max(1).min() < 3


def test_a_card_holds_question_answers_and_a_small_picture():
    card = gallery([1.0])[0]
    assert card["title"] == "question 0" and card["truth"] == [["no", 1.0], ["yes", 0.3]]
    assert card["predictions"] == [["no", 0.9], ["yes", 0.05], ["red", 0.01]]
    head, data = card["image"].split(",")
    assert head == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (THUMBNAIL, THUMBNAIL // 2)
