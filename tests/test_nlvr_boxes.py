"""Drawn boxes: the look that NLVR v1's pictures have, and captions that are true."""

import random
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from nlvr_boxes import Thing, captions, draw_boxes, think_up_boxes


def test_a_picture_has_nlvr_s_size_and_colours_where_its_things_are():
    square, dot = Thing("square", "blue", 20, 40, 80), Thing("circle", "yellow", 10, 0, 0)
    pixels = np.array(draw_boxes(((square,), (), (dot, square))))
    assert pixels.shape == (100, 400, 3)
    assert (pixels[80:, 40:60] == (0, 153, 255)).all() and (pixels[80:, 340:360] == (0, 153, 255)).all()
    assert (pixels[:, 100:150] == 128).all() and (pixels[:, 150:250] == 211).all() and (pixels[:, 250:300] == 128).all()
    assert tuple(pixels[5, 305]) == (255, 255, 0) and tuple(pixels[0, 300]) == (211, 211, 211)  # a circle has no corner


def test_a_triangle_stands_on_its_base():
    covered = (np.array(draw_boxes(((Thing("triangle", "black", 30, 0, 0),), (), ())))[:30, :30] == 0).all(-1).sum(1)
    assert covered[29] >= 28 and covered[0] <= 2 and (np.diff(covered.astype(int)) >= 0).all()


@pytest.mark.parametrize("seed", range(20))
def test_things_stay_in_their_box_and_apart(seed):
    for things in think_up_boxes(random.Random(seed), towers=seed % 2):
        covered = np.zeros((100, 100), dtype=int)
        for thing in things:
            assert 0 <= thing.x <= 100 - thing.size and 0 <= thing.y <= 100 - thing.size
            covered[thing.y : thing.y + thing.size, thing.x : thing.x + thing.size] += 1
        assert things and covered.max() == 1


def test_captions_name_a_tower_from_its_base_and_a_box_from_its_top():
    tower = Thing("square", "blue", 20, 40, 80), Thing("square", "black", 20, 40, 59)
    low, high = Thing("circle", "yellow", 30, 0, 60), Thing("triangle", "black", 10, 50, 5)
    said = captions((tower, (low, high), (high,)), random.Random(0))
    assert said[0].endswith("blocks, from the base blue, black") and said[0].startswith("the left tower has ")
    assert said[1].endswith("items, from the top small black triangle, big yellow circle")
    assert said[2].endswith("item, from the top small black triangle") and said[2].startswith("the right box has ")
