"""Scenes of drawn shapes: the objects of an image, and random new scenes.

All choices are symmetric in the colours, shapes, sizes and textures, so that the words of a question alone say nothing
about a scene.
"""

import math
from collections import Counter
from dataclasses import dataclass

ATTRIBUTES = {
    "shape": ("square", "triangle", "cross", "ring"),
    "color": ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black"),
    "size": ("small", "large"),
    "texture": ("solid", "striped", "dotted"),
}
RGB = {
    "red": (214, 32, 38), "orange": (250, 132, 10), "yellow": (250, 214, 28), "green": (34, 156, 66),
    "blue": (38, 88, 222), "purple": (124, 48, 172), "pink": (250, 118, 186), "black": (44, 44, 52),
}  # fmt: skip
TINTS = {
    "white": (251, 251, 250), "gray": (226, 228, 231), "beige": (246, 236, 214), "pale blue": (218, 234, 250),
    "pale green": (222, 243, 222), "pale pink": (251, 226, 230),
}  # fmt: skip
BACKDROPS = ("plain", "gradient", "speckled")

RADII = {"small": (17.0, 19.0), "large": (28.0, 31.0)}  # pixels, in an image whose short side is 128
FRAMES = ((128, 128), (144, 128), (160, 128), (171, 128), (171, 120), (128, 160), (192, 128))  # width, height
CROWDED_FRAMES = ((171, 128), (192, 128), (128, 192))  # for five and six objects
COUNT_WEIGHTS = {1: 8, 2: 5, 3: 3, 4: 1, 5: 1, 6: 1}  # number of objects -> weight: mostly few
GAP = 3.0  # pixels: least distance between two outlines, and to the edge
HABIT = 0.5  # probability that an object has the scene's favourite shape or colour, so that counts above 1 occur


@dataclass(frozen=True)
class Thing:
    """One drawn object; `x`, `y` (its centre) and `radius` are in pixels, `angle` in degrees."""

    shape: str
    color: str
    size: str
    texture: str
    x: float
    y: float
    radius: float
    angle: float

    @property
    def box(self):
        """Left, top, right, bottom of the square around the outline."""
        return [
            round(v, 1)
            for v in (self.x - self.radius, self.y - self.radius, self.x + self.radius, self.y + self.radius)
        ]

    def has(self, **wanted):
        """Whether the object has every wanted attribute, such as color="red"."""
        return all(getattr(self, name) == value for name, value in wanted.items())


@dataclass(frozen=True)
class Scene:
    """The content of an image. `tints` are the two ends of the background (equal unless it is a gradient)."""

    width: int
    height: int
    backdrop: str
    tints: tuple[str, str]
    things: tuple[Thing, ...]

    def matching(self, **wanted):
        return [thing for thing in self.things if thing.has(**wanted)]

    def counts(self, *names):
        """The number of objects per combination of the named attributes: {("red", "circle"): 2, ...}."""
        return Counter(tuple(getattr(thing, name) for name in names) for thing in self.things)


def scene_to_json(img_id, scene):
    """The line of `scenes/*.jsonl`: in pixels from the top left; boxes are left, top, right, bottom."""
    objects = [
        {"shape": t.shape, "color": t.color, "size": t.size, "texture": t.texture}
        | {"box": t.box, "center": [t.x, t.y], "angle": t.angle}
        for t in scene.things
    ]
    background = {"kind": scene.backdrop, "tints": list(scene.tints)}
    return {
        "img_id": img_id,
        "width": scene.width,
        "height": scene.height,
        "background": background,
        "objects": objects,
    }


def scene_from_json(row):
    """The scene of a line written by `scene_to_json`."""
    things = tuple(
        Thing(
            o["shape"], o["color"], o["size"], o["texture"], *o["center"], (o["box"][2] - o["box"][0]) / 2, o["angle"]
        )
        for o in row["objects"]
    )
    background = row["background"]
    return Scene(row["width"], row["height"], background["kind"], tuple(background["tints"]), things)


def random_scene(rng):
    """A new scene from a `random.Random`: first the attributes of the objects, then their positions."""
    count = rng.choices(list(COUNT_WEIGHTS), COUNT_WEIGHTS.values())[0]
    width, height = rng.choice(CROWDED_FRAMES if count >= 5 else FRAMES)
    places = None
    while places is None:  # six large objects may not fit
        looks = random_attributes(count, rng)
        radii = [round(rng.uniform(*RADII[look["size"]]), 1) for look in looks]
        places = find_places(radii, width, height, rng)
    backdrop = rng.choice(BACKDROPS)
    first = rng.choice(list(TINTS))
    second = rng.choice([tint for tint in TINTS if tint != first]) if backdrop == "gradient" else first
    things = (
        Thing(**look, x=x, y=y, radius=radius, angle=round(rng.uniform(-12, 12), 1))
        for look, radius, (x, y) in zip(looks, radii, places)
    )
    return Scene(width, height, backdrop, (first, second), tuple(things))


def random_attributes(count, rng):
    """Attributes of `count` objects; half of the scenes favour one shape, half one colour."""
    looks = [{name: rng.choice(values) for name, values in ATTRIBUTES.items()} for _ in range(count)]
    for name in ("shape", "color"):
        favourite = rng.choice(ATTRIBUTES[name])
        if rng.random() < HABIT:
            for look in looks:
                if rng.random() < HABIT:
                    look[name] = favourite
    return looks


def find_places(radii, width, height, rng, tries=20):
    """Centres of circles of these radii that do not overlap and are inside the image; None after `tries`."""
    order = sorted(range(len(radii)), key=lambda i: -radii[i])  # the large ones first
    for _ in range(tries):
        places = {}
        for i in order:
            place = free_place(radii[i], [(places[j], radii[j]) for j in places], width, height, rng)
            if place is None:
                break
            places[i] = place
        else:
            return [places[i] for i in range(len(radii))]
    return None


def free_place(radius, taken, width, height, rng, tries=40):
    """A random centre that does not overlap the circles already placed; None after `tries`."""
    edge = radius + GAP
    for _ in range(tries):
        x, y = round(rng.uniform(edge, width - edge), 1), round(rng.uniform(edge, height - edge), 1)
        if all(math.dist((x, y), place) >= radius + other + GAP for place, other in taken):
            return x, y
    return None
