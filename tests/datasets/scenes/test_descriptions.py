"""Descriptions say all of a scene, and their swapped twins are false with the same words."""

import random
from collections import Counter

import pytest

from clip_vl.datasets.scenes.descriptions import describe_all, noun, small_scene
from clip_vl.datasets.scenes.scene import ATTRIBUTES


def cases(count=300):
    for seed in range(count):
        rng = random.Random(seed)
        scene = small_scene(rng)
        yield scene, describe_all(scene, rng)


def words(text):
    return Counter(text.replace(",", "").replace("an orange", "a orange").split())


def things_of(text):
    """The noun phrases of a description, counted."""
    words = text.replace(",", "").split()
    shapes = [i for i, word in enumerate(words) if word in ATTRIBUTES["shape"]]
    return Counter(" ".join(words[i - 3 : i + 1]) for i in shapes)


def test_a_description_names_every_thing_with_all_its_attributes():
    for scene, said in cases():
        looks = [{name: getattr(thing, name) for name in ATTRIBUTES} for thing in scene.things]
        assert things_of(said.text) == Counter(map(noun, looks))
        assert said.text.endswith(f"on a {scene.tints[0]} background")


@pytest.mark.parametrize("kind", ["attribute_swap", "relation_swap"])
def test_a_swap_keeps_the_words_and_changes_what_they_say(kind):
    swapped = [(said.text, getattr(said, kind)) for _, said in cases() if getattr(said, kind)]
    assert len(swapped) > 30
    for text, other in swapped:
        assert other != text and words(other) == words(text)


def test_an_attribute_swap_is_of_other_things_and_a_relation_swap_of_the_same():
    for _, said in cases():
        if said.attribute_swap:
            assert things_of(said.attribute_swap) != things_of(said.text)
        if said.relation_swap:
            assert things_of(said.relation_swap) == things_of(said.text)
