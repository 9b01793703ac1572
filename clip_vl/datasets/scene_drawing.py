"""Draws scenes with Pillow: light backgrounds, outlined shapes with white stripes or dots, antialiased."""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from clip_vl.datasets.scenes import RGB, TINTS

SCALE = 4  # each shape is drawn this many times larger and averaged down
MARGIN = 3  # pixels around a shape's tile, for its outline and its shadow
OUTLINE = 1.6  # pixels
SHADOW = (2, 2, 46)  # right, down, opacity of 255
PERIOD = {"striped": 7.6, "dotted": 8.6}  # pixels from one stripe or row of dots to the next
HOLE = 0.5  # radius of a ring's hole, in radii of the ring
SPECKLE = 5.0  # standard deviation of a speckled background, in grey levels


def draw_scene(scene, noise_rng):
    """A PIL picture of the scene; `noise_rng` (NumPy) draws the grain of the background."""
    picture = Image.fromarray(background(scene, noise_rng))
    for thing in scene.things:
        stamp(picture, thing)
    return picture


def background(scene, noise_rng):
    """uint8 (height, width, 3): a tint, a slope between two tints, or a grainy tint; always light."""
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float32)
    slope = (x / scene.width + y / scene.height)[..., None] / 2
    first, second = (np.array(TINTS[name], np.float32) for name in scene.tints)
    pixels = first * (1 - slope) + second * slope
    grain = SPECKLE if scene.backdrop == "speckled" else 0.8
    pixels += grain * noise_rng.standard_normal((scene.height, scene.width, 1), dtype=np.float32)
    return pixels.clip(0, 255).round().astype(np.uint8)


def stamp(picture, thing):
    """Draw one thing and its faint shadow onto the picture, to the nearest pixel."""
    half = math.ceil(thing.radius) + MARGIN
    outer, face, color = tile(thing, half)
    left, top = round(thing.x) - half, round(thing.y) - half
    right, down, opacity = SHADOW
    picture.paste((40, 40, 60), (left + right, top + down), outer.point(lambda v: v * opacity // 255))
    rim = tuple(int(channel * 0.55) for channel in color)
    picture.paste(rim, (left, top), outer)
    picture.paste(face, (left, top), inner_mask(thing, half))


def tile(thing, half):
    """(mask of the whole shape, its textured face, its colour); squares of 2 * half pixels."""
    side = 2 * half * SCALE
    color = RGB[thing.color]
    face = Image.new("RGB", (side, side), color)
    draw_texture(ImageDraw.Draw(face), thing, side)
    return mask(thing, half, thing.radius), face.reduce(SCALE), color


def inner_mask(thing, half):
    return mask(thing, half, thing.radius - OUTLINE)


def mask(thing, half, radius):
    """L picture of 2 * half pixels: the shape's outline scaled to `radius`, filled, antialiased."""
    side = 2 * half * SCALE
    image = Image.new("L", (side, side))
    points = outline(thing.shape)
    turn = math.radians(thing.angle)
    cos, sin, size = math.cos(turn) * radius * SCALE, math.sin(turn) * radius * SCALE, side / 2
    ImageDraw.Draw(image).polygon([(size + cos * x - sin * y, size + sin * x + cos * y) for x, y in points], fill=255)
    if thing.shape == "ring":
        hole = (HOLE * thing.radius + thing.radius - radius) * SCALE
        ImageDraw.Draw(image).ellipse([size - hole, size - hole, size + hole, size + hole], fill=0)
    return image.reduce(SCALE)


def draw_texture(pen, thing, side):
    """White stripes or dots over the whole tile, turned with the thing; its very centre keeps its colour."""
    if thing.texture == "solid":
        return
    pitch, middle = PERIOD[thing.texture] * SCALE, side / 2
    turn = math.radians(thing.angle + 45)
    cos, sin = math.cos(turn), math.sin(turn)
    reach = math.ceil(side / pitch)

    def at(u, v):  # texture coordinates, in periods, to pixels
        return middle + pitch * (cos * u - sin * v), middle + pitch * (sin * u + cos * v)

    for row in range(-reach, reach + 1):
        if thing.texture == "striped":
            pen.line([at(-reach, row + 0.5), at(reach, row + 0.5)], fill="white", width=round(0.46 * pitch))
            continue
        for column in range(-reach, reach + 1):
            x, y = at(column + 0.5, row + 0.5)
            dot = 0.29 * pitch
            pen.ellipse([x - dot, y - dot, x + dot, y + dot], fill="white")


@functools.cache
def outline(shape):
    """Corners of a shape inside the unit circle, y downwards; a ring's is its outer circle."""
    if shape == "ring":
        return circle_points(48, 1.0)
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -0.98), (0.94, 0.72), (-0.94, 0.72)]
    arm, tip = 0.28, 0.94  # a cross: one quarter of its corners, turned four times
    quarter = [(-arm, -tip), (arm, -tip), (arm, -arm)]
    return [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in quarter]


def circle_points(count, radius):
    """Points on a circle, clockwise from the top."""
    turns = [2 * math.pi * i / count for i in range(count)]
    return [(radius * math.sin(turn), -radius * math.cos(turn)) for turn in turns]

