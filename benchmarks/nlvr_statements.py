"""Statements about drawn boxes in the manner of NLVR v1's (Suhr et al., ACL 2017), with their truth.

As there, a statement is made for four pictures of one kind and is true of two of them and false of the other two, so
that the words alone say nothing. A maker takes a `random.Random` and returns words and the test of what they are about:
of a thing, of a box, or of all three boxes.
"""

import operator
from itertools import pairwise

from nlvr_boxes import COLORS, NUMBERS, PLACES, SHAPES, SIDE, SIZES

PICTURES = 4  # about which a statement is made
QUANTIFIERS = {
    "": operator.ge, "at least": operator.ge, "exactly": operator.eq, "only": operator.eq, "at most": operator.le,
}  # fmt: skip
THINGS = ("item", "object", *SHAPES)
BLOCKS = ("block",)
ONE_BOX = 0.6  # share of the statements about boxes that name one of them: easy ones, from which the words are learnt


def statements(pictures, rng, towers, count):
    """`count` different (text, truth of each picture's boxes), each true of half of the pictures."""
    found = {}
    while len(found) < count:
        text, holds = (about_towers if towers else about_boxes)(rng)
        labels = [bool(holds(boxes)) for boxes in pictures]
        if sum(labels) == len(pictures) // 2:
            found[" ".join(text.split())] = labels
    return list(found.items())


def about_boxes(rng):
    if rng.random() < 0.45:
        return things_in_all(rng, THINGS)
    words, holds = rng.choice((with_many, with_two_kinds, with_so_many, with_colors))(rng, THINGS)
    return containers(rng, rng.choice(("box", "box", "grey box")), words, holds)


def about_towers(rng):
    kind = rng.random()
    if kind < 0.15:
        return things_in_all(rng, BLOCKS)
    if kind < 0.25:
        return whole_towers(rng)
    twice = with_end, with_pair
    makers = (with_many, with_two_kinds, with_so_many, with_colors, with_height, *twice, *twice)
    words, holds = rng.choice(makers)(rng, BLOCKS)
    return containers(rng, "tower", words, holds)


# ---- how many


def quantity(rng, most):
    """("at least two", 2, the test of a count)."""
    words, compare = rng.choice(list(QUANTIFIERS.items()))
    number = rng.randint(1, most)
    said = rng.choice((str(number), NUMBERS[number]))
    return f"{words} {said}", number, lambda count: compare(count, number)


def there_are(rng, most):
    """("there are at least two", whether one thing follows, the test of a count)."""
    kind = rng.random()
    if kind < 0.3:
        return rng.choice(("there is a", "there is at least one")), True, bool
    if kind < 0.4:
        return "there is no", True, operator.not_
    words, number, enough = quantity(rng, most)
    return f"there {'is' if number == 1 else 'are'} {words}", number == 1, enough


def inflect(noun, is_one):
    return noun if is_one else noun + ("es" if noun.endswith("x") else "s")


def containers(rng, noun, words, holds):
    """There are so many boxes or towers with what `words` say, or now and then: the left one has that."""
    if rng.random() < ONE_BOX:
        place = rng.randrange(3)
        return f"the {PLACES[place]} {noun} has {words}", lambda boxes: holds(boxes[place])
    start, is_one, enough = there_are(rng, 2)
    having = rng.choice(("with", "with", "which has" if is_one else "which have"))
    return f"{start} {inflect(noun, is_one)} {having} {words}", lambda boxes: enough(sum(map(holds, boxes)))


def whole_towers(rng):
    """Such as "there are two blue towers"."""
    color = rng.choice(COLORS)
    start, is_one, enough = there_are(rng, 2)
    return (
        f"{start} {inflect(f'{color} tower', is_one)}",
        lambda boxes: enough(sum({block.color for block in tower} == {color} for tower in boxes)),
    )


def things_in_all(rng, nouns):
    """There are so many things in all boxes together, perhaps of those that touch something."""
    words, fits = some_thing(rng, nouns)
    start, is_one, enough = there_are(rng, 5)
    where, touches = some_place(rng) if nouns is THINGS and rng.random() < 0.7 else ("", lambda thing: True)

    def holds(boxes):
        return enough(sum(fits(thing) and touches(thing) for box in boxes for thing in box))

    return f"{start} {inflect(words, is_one)} {where}", holds


# ---- which things


def some_thing(rng, nouns):
    """("small blue circle", the test of a thing)."""
    noun = rng.choice(nouns)
    color = rng.choice(COLORS) if rng.random() < 0.8 else ""
    size = rng.choice(list(SIZES)) if nouns is THINGS and rng.random() < 0.1 else ""

    def fits(thing):
        is_shape = noun not in SHAPES or thing.shape == noun
        return is_shape and color in ("", thing.color) and (not size or thing.size == SIZES[size])

    return " ".join(filter(None, (size, color, noun))), fits


def some_place(rng):
    """("touching the wall", the test of a thing), or now and then not touching it."""
    wall, base = rng.choice(("wall", "edge")), rng.choice(("base", "bottom"))
    places = {"any": f"the {wall}", "right": f"the right {wall}", "base": f"the {base}", "corner": "a corner"}
    place = rng.choice(("any", "any", "right", "base", "corner"))
    denied = rng.random() < 0.2

    def touches(thing):
        right, base = thing.x + thing.size == SIDE, thing.y + thing.size == SIDE
        across, down = right or thing.x == 0, base or thing.y == 0
        return denied != {"any": across or down, "right": right, "base": base, "corner": across and down}[place]

    return f"{'not' * denied} {rng.choice(('', 'closely'))} touching {places[place]}", touches


# ---- what a box or tower has


def with_many(rng, nouns):
    words, fits = some_thing(rng, nouns)
    many, number, enough = quantity(rng, 4)
    return f"{many} {inflect(words, number == 1)}", lambda box: enough(sum(map(fits, box)))


def with_two_kinds(rng, nouns):
    (first, holds), (second, also_holds) = with_many(rng, nouns), with_many(rng, nouns)
    return f"{first} and {second}", lambda box: holds(box) and also_holds(box)


def with_so_many(rng, nouns):
    """Such as "4 items", and perhaps "of which two are blue"."""
    many, number, enough = quantity(rng, 4 if nouns is BLOCKS else 7)
    words = f"{many} {inflect(rng.choice(nouns[:2]), number == 1)}"
    if rng.random() < 0.5:
        return words, lambda box: enough(len(box))
    part, number, holds = quantity(rng, 3)
    color = rng.choice(COLORS)
    words += f" of which {part} {'is' if number == 1 else 'are'} {color}"
    return words, lambda box: enough(len(box)) and holds(sum(thing.color == color for thing in box))


def with_colors(rng, nouns):
    """Such as "items of 2 different colors" or "only blue and yellow items"."""
    things = inflect(rng.choice(nouns[:2]), is_one=False)
    if rng.random() < 0.5:
        number = rng.randint(2, 3)
        said = rng.choice((f"{number} different colors", f"{NUMBERS[number]} colors", f"all {number} different colors"))
        return f"{things} of {said}", lambda box: len({thing.color for thing in box}) == number
    chosen = rng.sample(COLORS, rng.randint(1, 2))
    return f"only {' and '.join(chosen)} {things}", lambda box: {thing.color for thing in box} == set(chosen)


def with_end(rng, _nouns):
    """Such as "a black block at the top"."""
    base = rng.choice(("base", "bottom"))
    places = {f"at the {base}": 0, "at the top": -1, "as the second block": 1, "as the second block from the top": -2}
    words, place = rng.choices(list(places.items()), (2, 2, 1, 1))[0]
    color = rng.choice(COLORS)

    def holds(tower):
        return len(tower) > (place if place >= 0 else -place - 1) and tower[place].color == color

    return f"a {color} block {words}", holds


def with_pair(rng, _nouns):
    """Such as "a black block above a yellow block"."""
    lower, upper = rng.choice(COLORS), rng.choice(COLORS)
    words = rng.choice((
        f"a {upper} block {rng.choice(('above', 'over', 'on'))} a {lower} block",
        f"a {lower} block {rng.choice(('below', 'under'))} a {upper} block",
    ))  # fmt: skip
    return words, lambda tower: any((a.color, b.color) == (lower, upper) for a, b in pairwise(tower))


def with_height(rng, nouns):
    """Such as "exactly three blocks having a black block at the top"."""
    many, number, enough = quantity(rng, 4)
    words, holds = rng.choice((with_end, with_pair))(rng, nouns)
    joined = f"{many} {inflect('block', number == 1)} {rng.choice(('having', 'with', 'and it has'))} {words}"
    return joined, lambda tower: enough(len(tower)) and holds(tower)
