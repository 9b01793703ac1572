"""Whole descriptions of small scenes, for dual encoders: each thing with all of its attributes and where it is.

And the same words in another order that are false of the picture: two things have exchanged an attribute, or their
places. Whoever takes a sentence for a bag of words cannot tell the two apart.
"""

from dataclasses import replace
from typing import NamedTuple

from clip_vl.datasets.scenes.scene import ATTRIBUTES, random_scene
from clip_vl.datasets.scenes.sentences import article, place, relation

MOST_THINGS = 3


class Description(NamedTuple):
    """True of a scene, and two that are not; "" where there is none to be had, as with a single thing."""

    text: str
    attribute_swap: str
    relation_swap: str


def small_scene(rng):
    """A scene of at most three things: its description has about thirty words."""
    scene = random_scene(rng)
    while len(scene.things) > MOST_THINGS:
        scene = random_scene(rng)
    return scene


def describe_all(scene, rng):
    """The `Description` of a scene; of two things and more, the first two are set in relation half of the time."""
    things = rng.sample(scene.things, len(scene.things))
    looks = [{name: getattr(thing, name) for name in ATTRIBUTES} for thing in things]
    related = rng.random() < 0.5 and len(things) > 1 and relation(*things[:2])
    wheres = [place(scene, thing) for thing in things]
    tail = f", on a {scene.tints[0]} background"

    def text(looks):
        parts = [f"{article(noun(look))} {where}" for look, where in zip(looks, wheres)]
        if related:
            parts[:2] = [f"{article(noun(looks[0]))} {related} {article(noun(looks[1]))}"]
        return ", ".join(parts) + tail

    swapped = _swap_attribute(looks, rng)
    exchanged = [looks[1], looks[0], *looks[2:]] if related and noun(looks[0]) != noun(looks[1]) else None
    return Description(text(looks), text(swapped) if swapped else "", text(exchanged) if exchanged else "")


def twin_scenes(rng):
    """Two (scene, description) that differ in who has which colour, shape or texture: the descriptions have the same
    words, and each is false of the other's picture.
    """
    while True:
        scene = small_scene(rng)
        looks = [{name: getattr(thing, name) for name in ATTRIBUTES} for thing in scene.things]
        swapped = _swap_attribute(looks, rng, ("color", "shape", "texture"))  # a size would need another place
        wheres = [place(scene, thing) for thing in scene.things]
        if swapped and len(set(wheres)) == len(wheres):
            things = tuple(replace(thing, **look) for thing, look in zip(scene.things, swapped))
            tail = f", on a {scene.tints[0]} background"
            texts = [
                ", ".join(f"{article(noun(look))} {where}" for look, where in zip(of, wheres)) + tail
                for of in (looks, swapped)
            ]
            return (scene, texts[0]), (replace(scene, things=things), texts[1])


def noun(look):
    """All four attributes of a thing: "small red striped ring"."""
    return " ".join(look[name] for name in ("size", "color", "texture", "shape"))


def _swap_attribute(looks, rng, names=("color", "shape", "texture", "size")):
    """The looks after two things exchanged one attribute, where that leaves other things than there are; or None."""
    options = []
    for i, first in enumerate(looks):
        for j, second in enumerate(looks[:i]):
            for name in names:
                changed = list(looks)
                changed[i], changed[j] = first | {name: second[name]}, second | {name: first[name]}
                if sorted(map(noun, changed)) != sorted(map(noun, looks)):
                    options.append(changed)
    return rng.choice(options) if options else None
