"""Generated images in the style of NLVR v1 (Suhr et al., ACL 2017): three light boxes side by side on a grey wall.

A box holds scattered objects of three shapes, colours and sizes, or one tower of square blocks. `boxes` is a tuple of
three boxes, each a tuple of objects, those of a tower from its base upwards.
"""

from typing import NamedTuple

from PIL import Image, ImageDraw

SIDE, GAP = 100, 50  # pixels of a box, and between two
PAPER, WALL = (211, 211, 211), (128, 128, 128)
RGB = {"yellow": (255, 255, 0), "black": (0, 0, 0), "blue": (0, 153, 255)}
COLORS = tuple(RGB)
SHAPES = ("square", "circle", "triangle")
SIZES = {"small": 10, "medium": 20, "big": 30}  # pixels
BLOCK, SEAM = 20, 1  # pixels of a block's side, and of the line between two
COUNT_WEIGHTS = {1: 5, 2: 4, 3: 3, 4: 2, 5: 2, 6: 1, 7: 1}  # number of scattered objects -> weight: mostly few
AT_WALL = 0.2  # share of the scattered objects at the right wall, and at the bottom
SMOOTH = 4  # an outline is drawn this many times larger and averaged down

PLACES = ("left", "middle", "right")
NUMBERS = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven"}


class Thing(NamedTuple):
    """One drawn thing; x, y are the pixels from its box's left and top edge to its own."""

    shape: str
    color: str
    size: int
    x: int
    y: int


def think_up_boxes(rng, towers):
    """Three new boxes from a `random.Random`, all with towers or all with scattered things.

    Most pictures do without some colour or shape: what is in one at all is the first thing to be learnt from it.
    """
    colors = rng.sample(COLORS, rng.randint(1, len(COLORS)))
    shapes = rng.sample(SHAPES, rng.randint(1, len(SHAPES)))
    return tuple(think_up_tower(rng, colors) if towers else think_up_scatter(rng, shapes, colors) for _ in range(3))


def think_up_tower(rng, colors):
    levels = range(SIDE - BLOCK, -1, -BLOCK - SEAM)[: rng.randint(1, 4)]
    return tuple(Thing("square", rng.choice(colors), BLOCK, (SIDE - BLOCK) // 2, y) for y in levels)


def think_up_scatter(rng, shapes, colors, tries=20):
    """One to seven things that do not overlap; one that finds no place is left out."""
    things = []
    for _ in range(rng.choices(list(COUNT_WEIGHTS), COUNT_WEIGHTS.values())[0]):
        look = rng.choice(shapes), rng.choice(colors), rng.choice(list(SIZES.values()))
        room = SIDE - look[2]
        for _ in range(tries):
            thing = Thing(*look, *(room if rng.random() < AT_WALL else rng.randint(0, room) for _ in "xy"))
            if all(are_apart(thing, other) for other in things):
                things.append(thing)
                break
    return tuple(things)


def are_apart(a, b):
    return a.x + a.size < b.x or b.x + b.size < a.x or a.y + a.size < b.y or b.y + b.size < a.y


def draw_boxes(boxes):
    """The PIL picture, 400 x 100."""
    picture = Image.new("RGB", (3 * SIDE + 2 * GAP, SIDE), WALL)
    for place, things in enumerate(boxes):
        left = place * (SIDE + GAP)
        picture.paste(PAPER, (left, 0, left + SIDE, SIDE))
        for thing in things:
            picture.paste(RGB[thing.color], (left + thing.x, thing.y), outline(thing.shape, thing.size))
    return picture


def outline(shape, size):
    """What a thing covers of its square: an antialiased L picture."""
    side = size * SMOOTH
    image = Image.new("L", (side, side), 255 if shape == "square" else 0)
    pen = ImageDraw.Draw(image)
    if shape == "circle":
        pen.ellipse((0, 0, side - 1, side - 1), fill=255)
    elif shape == "triangle":
        pen.polygon([(side / 2, 0), (side - 1, side - 1), (0, side - 1)], fill=255)
    return image.reduce(SMOOTH)


def captions(boxes, rng):
    """What is in each box, such as "the left tower has two blocks, from the base blue, black"."""
    return [f"the {side} {inventory(box, rng)}" for side, box in zip(PLACES, boxes)]


def inventory(box, rng):
    """How many things, and the blocks of a tower from its base, or up to four things from the top."""
    number, plural = rng.choice((str(len(box)), NUMBERS[len(box)])), "s" * (len(box) > 1)
    if all(thing.x == (SIDE - BLOCK) // 2 for thing in box):
        return f"tower has {number} block{plural}, from the base {', '.join(thing.color for thing in box)}"
    size_name = {size: name for name, size in SIZES.items()}
    from_top = sorted(box, key=lambda thing: thing.y)[:4]
    seen = ", ".join(f"{size_name[thing.size]} {thing.color} {thing.shape}" for thing in from_top)
    return f"box has {number} item{plural}, from the top {seen}"
