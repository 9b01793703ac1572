"""Captions, region descriptions and questions of a scene; only the image answers the questions.

A question names an object by words that fit exactly one. The answer is drawn before the words where possible, so that
the words do not predict it: yes is as frequent as no, and each option of a choice as frequent as the other.
"""

import itertools
from collections import Counter
from typing import NamedTuple

from clip_vl.datasets.scenes.scene import ATTRIBUTES

OPENINGS = ("", "there is ", "a picture of ", "we see ", "this image shows ")
RELATIONS = {"left of": ("x", 1), "right of": ("x", -1), "above": ("y", 1), "below": ("y", -1)}
MARGIN = 14.0  # pixels by which two centres must differ for a relation
MAX_WORDS = 18  # twenty tokens with [CLS] and [SEP]
SAID = {"texture": 0.7, "size": 0.6}  # probability that a description mentions the attribute
TRIES = 20  # attempts at one question family before another one is drawn

# The answers of annotators who disagree.
CONFUSIONS = {
    "red": "orange", "orange": "red", "yellow": "orange", "green": "blue", "blue": "purple", "purple": "blue",
    "pink": "red", "black": "gray", "square": "box", "triangle": "arrow", "cross": "plus", "ring": "circle",
    "small": "little", "large": "big", "solid": "plain", "striped": "lines", "dotted": "spots", "yes": "no",
    "no": "yes",
}  # fmt: skip
CAREFUL = 0.93  # probability that an annotator gives the right answer


class Question(NamedTuple):
    """A question, its answer, and its types in VQA v2."""

    text: str
    answer: str
    question_type: str
    answer_type: str


def plural(noun):
    return noun + ("es" if noun.endswith("s") else "s")


def article(words):
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


# ---- statements


def phrase(thing, extras):
    """Colour and shape, and the extras size or texture: "small red striped ring".

    The order of the attributes is fixed, so that the position of a masked word says which attribute it is.
    """
    words = ("color", "shape", *extras)
    return " ".join(getattr(thing, name) for name in ("size", "color", "texture", "shape") if name in words)


def describe(thing, rng):
    """A noun phrase with the colour, and sometimes size or texture."""
    if rng.random() < 0.15:
        return f"{thing.color} thing"
    return phrase(thing, mentioned(rng))


def mentioned(rng):
    """The attributes of size and texture that a description mentions."""
    return [name for name, share in SAID.items() if rng.random() < share]


def relation(first, second):
    """The relation of `first` to `second`; None where their centres differ too little."""
    axis = max("xy", key=lambda a: abs(getattr(first, a) - getattr(second, a)))
    difference = getattr(second, axis) - getattr(first, axis)
    if abs(difference) < MARGIN:
        return None
    return next(w for w, (a, sign) in RELATIONS.items() if a == axis and sign * difference > 0)


def captions(scene, rng, count=5):
    """`count` sentences about the whole image or a part of it, in several forms."""
    forms = (survey, survey, survey, count_things, relate_things)
    return [forms[index % len(forms)](scene, rng) for index in range(count)]


def survey(scene, rng):
    """Up to three objects with their positions: "red striped ring top left, blue square bottom"."""
    chosen = rng.sample(scene.things, min(len(scene.things), 3))
    room = (MAX_WORDS - (len(chosen) - 1)) // len(chosen)  # words per object, after the commas
    extras = max(0, room - 4)  # colour, shape and two words of position come first
    return ", ".join(f"{phrase(thing, mentioned(rng)[:extras])} {place(scene, thing)}" for thing in chosen)


def place(scene, thing):
    """The position in the image by thirds: "top left", "bottom", "middle" ..."""
    column = ("left", "", "right")[min(2, int(3 * thing.x / scene.width))]
    row = ("top", "", "bottom")[min(2, int(3 * thing.y / scene.height))]
    return " ".join(word for word in (row, column) if word) or "middle"


def list_things(scene, rng):
    chosen = rng.sample(scene.things, min(len(scene.things), rng.randint(1, 3)))
    *rest, last = [article(describe(thing, rng)) for thing in chosen]
    return rng.choice(OPENINGS) + (f"{', '.join(rest)} and {last}" if rest else last)


def count_things(scene, rng):
    name = rng.choice(("shape", "color"))
    value, number = rng.choice(sorted(Counter(getattr(thing, name) for thing in scene.things).items()))
    noun = value if name == "shape" else f"{value} thing"
    return f"there are {number} {plural(noun)}" if number > 1 else f"there is one {noun}"


def relate_things(scene, rng):
    if len(scene.things) > 1:
        first, second = rng.sample(scene.things, 2)
        words = relation(first, second)
        if words:
            return f"{article(describe(first, rng))} {words} {article(describe(second, rng))}"
    return list_things(scene, rng)


def regions(scene, rng, count=5):
    """Short descriptions of one object or of the relation of two, as in Visual Genome."""
    return [relate_things(scene, rng) if rng.random() < 0.4 else describe(rng.choice(scene.things), rng)
            for _ in range(count)]  # fmt: skip


# ---- questions: each function returns one, or None where the scene allows none.
# `wanted` is the answer of a yes/no question, drawn before the question, so that both answers are equally frequent.


def is_there(scene, rng, wanted):
    """Is there an object of a colour and shape? With the answer no, one of the two occurs."""
    words = color_and_shape(scene, rng, wanted)
    if words is None:
        return None
    form = rng.choice(("is there", "can you see", "does the picture show"))
    return Question(f"{form} {article(words)}?", yes(wanted), f"{form} a", "yes/no")


def color_and_shape(scene, rng, wanted):
    """Such as "red ring": of an object or, where not wanted, of none but similar; None where there is one."""
    thing = rng.choice(scene.things)
    color, shape = thing.color, thing.shape
    if not wanted:
        color, shape = rng.choice([(rng.choice(ATTRIBUTES["color"]), shape), (color, rng.choice(ATTRIBUTES["shape"]))])
    return f"{color} {shape}" if bool(scene.matching(color=color, shape=shape)) == wanted else None


def is_it(scene, rng, wanted):
    """Does the only object of a shape (or of a colour and shape) have a colour, a size or a texture?"""
    name = rng.choice(("color", "size", "texture"))
    found = the_one(scene, rng, "shape" if name == "color" else "both")
    if found is None:
        return None
    thing, words = found
    actual = getattr(thing, name)
    asked = actual if wanted else rng.choice([v for v in ATTRIBUTES[name] if v != actual])
    return Question(f"is the {words} {asked}?", yes(wanted), "is the", "yes/no")


def either_or(scene, rng, _wanted):
    """A choice of two values, in random order."""
    name = rng.choice(("color", "size", "size", "shape"))
    found = the_one(scene, rng, {"color": "shape", "shape": "color"}.get(name, "both"))
    if found is None:
        return None
    thing, words = found
    actual = getattr(thing, name)
    options = [actual, rng.choice([v for v in ATTRIBUTES[name] if v != actual])]
    rng.shuffle(options)
    if name == "shape":
        options = [article(option) for option in options]
    return Question(f"is the {words} {options[0]} or {options[1]}?", actual, "is the", "other")


def what_color(scene, rng, _wanted):
    found = the_one(scene, rng, "shape")
    form = rng.choice(("what color is the", "what is the color of the"))
    return found and Question(f"{form} {found[1]}?", found[0].color, form, "other")


def what_shape(scene, rng, _wanted):
    found = the_one(scene, rng, "color")
    form = rng.choice(("what shape is the", "what is the shape of the"))
    return found and Question(f"{form} {found[1]}?", found[0].shape, form, "other")


def what_texture(scene, rng, _wanted):
    found = the_one(scene, rng, "both")
    return found and Question(f"is the {found[1]} solid, striped or dotted?", found[0].texture, "is the", "other")


def how_many(scene, rng, _wanted):
    """The number of all objects, or of a shape or colour; the number is drawn first, so that none is frequent."""
    name = rng.choice(("shape", "color", None))
    if name is None:
        return Question("how many things are there?", str(len(scene.things)), "how many", "number")
    wanted = rng.randint(0, 3)
    values = [v for v in ATTRIBUTES[name] if len(scene.matching(**{name: v})) == wanted]
    if not values:
        return None
    noun = plural(rng.choice(values)) if name == "shape" else f"{rng.choice(values)} things"
    return Question(f"how many {noun} are there?", str(wanted), "how many", "number")


def where(scene, rng, wanted):
    """Is one object left of, right of, above or below another?"""
    found = two_things(scene, rng, wanted)
    return found and Question("is the {} {} the {}?".format(*found), yes(wanted), "is the", "yes/no")


def two_things(scene, rng, wanted):
    """Two objects and a true or false relation: ("red ring", "left of", "blue square"); or None."""
    if len(scene.things) < 2:
        return None
    first, second = rng.sample(scene.things, 2)
    names = [f"{thing.color} {thing.shape}" for thing in (first, second)]
    if any(len(scene.matching(color=t.color, shape=t.shape)) > 1 for t in (first, second)):
        return None
    axis = rng.choice("xy")
    difference = getattr(second, axis) - getattr(first, axis)
    if abs(difference) < MARGIN:
        return None
    holds = difference > 0 if wanted else difference < 0
    words = next(w for w, (a, sign) in RELATIONS.items() if a == axis and (sign > 0) == holds)
    return names[0], words, names[1]


def compare(scene, rng, wanted):
    """Are there more objects of one shape or colour than of another, or as many?"""
    found = two_kinds(scene, rng, wanted)
    if found is None:
        return None
    first, second, more = found
    text = f"are there more {first} than {second}?" if more else f"are there as many {first} as {second}?"
    return Question(text, yes(wanted), "are there", "yes/no")


def two_kinds(scene, rng, wanted):
    """("rings", "crosses", more?): whether more of the first kind or as many is asked; true of the scene if wanted.

    None unless both answers are possible in the scene: otherwise the words would predict the answer.
    """
    name, more = rng.choice(("shape", "color")), rng.random() < 0.6
    pairs = {True: [], False: []}
    for first, second in itertools.permutations(ATTRIBUTES[name], 2):
        a, b = len(scene.matching(**{name: first})), len(scene.matching(**{name: second}))
        if a and b:
            pairs[a > b if more else a == b].append((first, second))
    if not all(pairs.values()):
        return None
    first, second = (plural(v) if name == "shape" else f"{v} things" for v in rng.choice(pairs[wanted]))
    return first, second, more


FAMILIES = {  # question maker -> share of the questions
    is_there: 27, is_it: 15, either_or: 18, what_color: 7, what_shape: 6, what_texture: 4, how_many: 9, where: 8,
    compare: 6,
}  # fmt: skip


def yes(value):
    return "yes" if value else "no"


def the_one(scene, rng, by):
    """An object and words that fit only it: its shape, its colour ("the red thing"), or both; or None."""
    names = {"shape": ("shape",), "color": ("color",), "both": ("color", "shape")}[by]
    counts = scene.counts(*names)
    alone = [thing for thing in scene.things if counts[tuple(getattr(thing, n) for n in names)] == 1]
    if not alone:
        return None
    thing = rng.choice(alone)
    words = " ".join(getattr(thing, n) for n in names)
    return thing, f"{words} thing" if by == "color" else words


def questions(scene, rng, count):
    """`count` different questions in the shares of FAMILIES; fewer where the scene allows no more."""
    found = {}
    for family in rng.choices(list(FAMILIES), FAMILIES.values(), k=4 * count):
        wanted = rng.random() < 0.5
        question = next((q for q in (family(scene, rng, wanted) for _ in range(TRIES)) if q), None)
        if question and question.text not in found:
            found[question.text] = question
        if len(found) == count:
            break
    return list(found.values())


def annotate(answer, rng, annotators=10):
    """The answers of ten annotators: most are right, some of CONFUSIONS."""

    def other():
        if answer.isdigit():
            return str(max(0, int(answer) + rng.choice((-1, 1))))
        return CONFUSIONS[answer]

    return [answer if rng.random() < CAREFUL else other() for _ in range(annotators)]
