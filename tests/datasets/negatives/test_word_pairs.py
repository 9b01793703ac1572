"""What is said of negative captions by their neighbouring words."""

from clip_vl.datasets.negatives.swaps import draw_swaps
from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.datasets.negatives.word_pairs import WordPairs
from clip_vl.engine.random import numpy_rng

SAID = ["A red ball left of a blue box.", "a Blue ball on a red box"]


def test_only_neighbours_that_were_seen_are_plausible():
    plausible = WordPairs(SAID)
    assert plausible("a blue ball left of a red box")
    assert not plausible("a red blue ball")  # "red blue" is nowhere
    assert not plausible("ball left of a blue box")  # no caption begins with "ball"
    assert not plausible("a red ball left of a")  # none ends with "a"


def test_what_stands_between_words_is_a_neighbour_too():
    assert WordPairs(["a dog, a cat"])("a dog, a dog, a cat")
    assert not WordPairs(["a dog, a cat"])("a dog a cat")


def test_swaps_are_drawn_among_plausible_ones():
    parse = load_tagger("bundled")("A red ball left of a blue box.")
    rng = numpy_rng(0, "t", 0)
    assert len(draw_swaps(parse, rng)) == 3  # of adjectives, of nouns and of phrases; nobody says "box left"
    assert [swap.text for swap in draw_swaps(parse, rng, allowed=WordPairs(SAID))] == ["A blue ball left of a red box."]
    assert not draw_swaps(parse, rng, allowed=lambda text: False)
    assert not draw_swaps(parse, rng, seed_variant=True, allowed=lambda text: False)
