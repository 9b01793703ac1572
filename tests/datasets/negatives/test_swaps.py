"""Swaps change the picture that a caption describes, and nothing else about the caption."""

import pytest

from clip_vl.datasets.negatives.swaps import draw_swaps, enumerate_swaps, folded
from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.engine.random import numpy_rng

CAPTION = "A brown dog quickly  chases the white cats , happily jumping over big logs."


@pytest.fixture(scope="module")
def tagger():
    return load_tagger("bundled")


def texts(parse, **options):
    return [swap.text for swap in enumerate_swaps(parse, **options)]


def test_all_swaps_of_a_caption_by_hand(tagger):
    """Singular nouns swap with singular ones only, plural with plural; spacing and the first capital stay in place."""
    parse = tagger("Dogs watch a red bird near  a tree with cats.")
    assert texts(parse) == [
        "Cats watch a red bird near  a tree with dogs.",
        "Dogs watch a red tree near  a bird with cats.",
    ]


def test_each_class_has_its_swaps(tagger):
    found = {}
    for swap in enumerate_swaps(tagger(CAPTION)):
        found.setdefault(swap.kind, []).append(swap.text)
    assert found["plural"] == ["A brown dog quickly  chases the white logs , happily jumping over big cats."]
    assert found["adverb"] == ["A brown dog happily  chases the white cats , quickly jumping over big logs."]
    assert len(found["adjective"]) == 3
    assert found["phrase"] == ["The white cats quickly  chases a brown dog , happily jumping over big logs."]
    verbs = [
        swap.text for swap in enumerate_swaps(tagger("A man holding a cup is watching a horse.")) if swap.kind == "verb"
    ]
    assert verbs == ["A man watching a cup is holding a horse."]


@pytest.mark.parametrize(
    "caption, same",
    [
        ("A brown and white cat sits.", "A white and brown cat sits."),  # adjectives of one noun
        ("The old red truck is here.", "The red old truck is here."),
        ("The cat is black and white.", "The cat is white and black."),
        ("A cat and a dog on a mat.", "A dog and a cat on a mat."),
        ("Bowls of apples, plums and pears.", "Bowls of plums, apples and pears."),
        ("A man sitting and eating.", "A man eating and sitting."),
        ("A red apple or a red pear.", "A red pear or a red apple."),
    ],
)
def test_what_describes_the_same_picture_is_no_negative(tagger, caption, same):
    assert folded(same) not in {folded(text) for text in texts(tagger(caption))}
    assert folded(same) in {folded(text) for text in texts(tagger(caption), same_meaning=True)}


@pytest.mark.parametrize(
    "caption, other",
    [
        ("A brown cat and a white dog.", "A white cat and a brown dog."),
        ("A brown cat and a white dog.", "A brown dog and a white cat."),
        ("A man holding a cup and wearing a hat.", "A man holding a hat and wearing a cup."),
        ("A man on a horse and a dog on a bed.", "A dog on a horse and a man on a bed."),
    ],
)
def test_other_pictures_across_and_stay_negatives(tagger, caption, other):
    assert other in texts(tagger(caption))


def test_equal_words_are_not_swapped(tagger):
    assert texts(tagger("A dog near a Dog.")) == []
    assert texts(tagger("Nothing.")) == texts(tagger("")) == []


def test_draws_depend_on_their_key_alone_and_take_one_swap_of_each_class(tagger):
    parse = tagger(CAPTION)
    drawn = draw_swaps(parse, numpy_rng(1, "caption swaps", 7))
    assert [swap.kind for swap in drawn] == ["plural", "adjective", "adverb", "phrase"]
    assert drawn == draw_swaps(parse, numpy_rng(1, "caption swaps", 7))
    assert {swap.text for swap in drawn} <= set(texts(parse))
    assert len({draw_swaps(parse, numpy_rng(1, "caption swaps", row))[1].text for row in range(30)}) == 3


def test_five_draws_join_tokens_with_single_spaces_and_repeat_none(tagger):
    parse = tagger("A dog  chases two cats on the wet grass, near big trees.")
    drawn = [swap.text for swap in draw_swaps(parse, numpy_rng(1, "caption swaps", 3), seed_variant=True)]
    assert 1 < len(drawn) <= 5 and len(set(map(folded, drawn))) == len(drawn)
    assert all("  " not in text and text.endswith(" .") for text in drawn)
    assert all(
        sorted(folded(text)) == sorted(folded(parse.text)) and folded(text) != folded(parse.text) for text in drawn
    )
    assert draw_swaps(tagger("A dog."), numpy_rng(1, "caption swaps", 3), seed_variant=True) == []
