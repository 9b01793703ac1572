"""Draws scenes with Pillow: light backgrounds, shapes with a dark contour and white stripes or dots, antialiased."""

import functools
import math

import numpy as np
from PIL import Image, ImageDraw

from clip_vl.datasets.scenes.scene import RGB, TINTS

SCALE = 4  # each shape is drawn this many times larger and averaged down
MARGIN = 3  # pixels around a shape, for its contour
CONTOUR = 3.4  # pixels; the same dark colour for all shapes, so that shape does not depend on colour
INK = (40, 44, 52)
PERIOD = {"striped": 11.0, "dotted": 11.5}  # pixels from one stripe or row of dots to the next
HOLE = 0.63  # radius of a ring's hole / radius of the ring
SPECKLE = 5.0  # standard deviation of a speckled background, in grey levels


def draw_scene(scene, noise_rng):
    """A PIL image of the scene; the NumPy generator `noise_rng` draws the noise of the background."""
    image = Image.fromarray(background(scene, noise_rng))
    for thing in scene.things:
        stamp(image, thing)
    return image


def background(scene, noise_rng):
    """uint8 (height, width, 3): a light tint, a gradient between two tints, or a tint with noise."""
    y, x = np.mgrid[0 : scene.height, 0 : scene.width].astype(np.float32)
    slope = (x / scene.width + y / scene.height)[..., None] / 2
    first, second = (np.array(TINTS[name], np.float32) for name in scene.tints)
    pixels = first * (1 - slope) + second * slope
    grain = SPECKLE if scene.backdrop == "speckled" else 0.8
    pixels += grain * noise_rng.standard_normal((scene.height, scene.width, 1), dtype=np.float32)
    return pixels.clip(0, 255).round().astype(np.uint8)


def stamp(image, thing):
    """Draw one object onto the image, at the nearest pixel."""
    half = math.ceil(thing.radius) + MARGIN
    corner = round(thing.x) - half, round(thing.y) - half
    filled, contour = masks(thing, half)
    image.paste(face(thing, half), corner, filled)
    image.paste(INK, corner, contour)


def face(thing, half):
    """RGB square of 2 * half pixels with the colour and texture of an object, before masking."""
    side = 2 * half * SCALE
    image = Image.new("RGB", (side, side), RGB[thing.color])
    draw_texture(ImageDraw.Draw(image), thing, side)
    return image.reduce(SCALE)


def masks(thing, half):
    """(filled, contour): antialiased grey masks of 2 * half pixels."""
    side, pen_width = 2 * half * SCALE, round(CONTOUR * SCALE)
    filled, contour = Image.new("L", (side, side)), Image.new("L", (side, side))
    turn, size, middle = math.radians(thing.angle), thing.radius * SCALE, side / 2
    cos, sin = math.cos(turn) * size, math.sin(turn) * size
    points = [(middle + cos * x - sin * y, middle + sin * x + cos * y) for x, y in outline(thing.shape)]
    ImageDraw.Draw(filled).polygon(points, fill=255)
    ImageDraw.Draw(contour).line([*points, *points[:2]], fill=255, width=pen_width, joint="curve")
    if thing.shape == "ring":
        hole = [middle - HOLE * size] * 2 + [middle + HOLE * size] * 2
        ImageDraw.Draw(filled).ellipse(hole, fill=0)
        ImageDraw.Draw(contour).ellipse(hole, outline=255, width=pen_width)
    return filled.reduce(SCALE), contour.reduce(SCALE)


def draw_texture(pen, thing, side):
    """Draw white stripes or dots, rotated with the object; its centre keeps its colour."""
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
    """Corners of a shape inside the unit circle, y downwards; of a ring its outer circle."""
    if shape == "ring":
        return circle_points(48, 1.0)
    if shape == "square":
        return [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)]
    if shape == "triangle":
        return [(0, -0.98), (0.94, 0.72), (-0.94, 0.72)]
    arm, tip = 0.21, 0.94  # a cross: a quarter of its corners, rotated four times
    quarter = [(-arm, -tip), (arm, -tip), (arm, -arm)]
    return [(x * c - y * s, x * s + y * c) for c, s in ((1, 0), (0, 1), (-1, 0), (0, -1)) for x, y in quarter]


def circle_points(count, radius):
    """Points on a circle, clockwise from the top."""
    turns = [2 * math.pi * i / count for i in range(count)]
    return [(radius * math.sin(turn), -radius * math.cos(turn)) for turn in turns]
