"""A text-only scorer is a probability model, and knows the captions it was made from."""

import math

import pytest

from clip_vl.evaluation.blind import NGrams, shortness


def test_word_probabilities_by_hand():
    """After "a dog" comes "runs" in one of two captions; of 8 words, of 5 kinds, "runs" is one."""
    model = NGrams(["a dog runs", "a dog sits"])
    expected = 0.6 * 1 / 2 + 0.3 * 1 / 2 + 0.1 * (1 + 1) / (8 + 5 + 1)
    assert model.probability("a", "dog", "runs") == pytest.approx(expected)
    start = 0.6 + 0.3 + 0.1 * 3 / 14  # "a" begins both
    assert model("a") < model("a dog runs") and math.exp(model("a dog runs")) < start


def test_it_prefers_what_it_has_read_and_shorter_captions():
    model = NGrams(["the cup is on the desk"] * 3)
    assert model("the cup is on the desk") > model("the desk on is the cup")
    assert shortness("a cat") > shortness("a black cat")
