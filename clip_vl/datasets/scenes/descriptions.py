"""Whole descriptions of small scenes, for dual encoders: each object with all of its attributes and its position.

For each description also the same words in an order that is false of the image: two objects have exchanged an attribute
or their positions. A bag-of-words text encoder cannot tell the two apart.
"""

from dataclasses import replace
from typing import NamedTuple

from clip_vl.datasets.scenes.scene import ATTRIBUTES, random_scene
from clip_vl.datasets.scenes.sentences import article, place, relation

MOST_THINGS = 3


class Description(NamedTuple):
    """A true description of a scene and two false ones; "" where none exists, as with a single object."""

    text: str
    attribute_swap: str
    relation_swap: str


def small_scene(rng):
    """A scene of at most three objects: its description has about thirty words."""
    scene = random_scene(rng)
    while len(scene.things) > MOST_THINGS:
        scene = random_scene(rng)
    return scene


def describe_all(scene, rng):
    """The `Description` of a scene; half of those with two or more objects state a relation of the first two."""
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
    """Two (scene, description) pairs with a colour, shape or texture exchanged between two objects.

    The descriptions have the same words, and each is false of the other image.
    """
    while True:
        scene = small_scene(rng)
        looks = [{name: getattr(thing, name) for name in ATTRIBUTES} for thing in scene.things]
        swapped = _swap_attribute(looks, rng, ("color", "shape", "texture"))  # sizes fix positions
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
    """All four attributes of an object: "small red striped ring"."""
    return " ".join(look[name] for name in ("size", "color", "texture", "shape"))


def _swap_attribute(looks, rng, names=("color", "shape", "texture", "size")):
    """The attributes after two objects exchange one, if the set of objects changes; else None."""
    options = []
    for i, first in enumerate(looks):
        for j, second in enumerate(looks[:i]):
            for name in names:
                changed = list(looks)
                changed[i], changed[j] = first | {name: second[name]}, second | {name: first[name]}
                if sorted(map(noun, changed)) != sorted(map(noun, looks)):
                    options.append(changed)
    return rng.choice(options) if options else None
