"""Statements about drawn boxes: true where a reader of their words says so, and of half of the pictures."""

import random
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
from nlvr_boxes import NUMBERS, Thing, think_up_boxes
from nlvr_statements import about_boxes, about_towers, statements

VALUE = {word: number for number, word in NUMBERS.items()} | {str(number): number for number in NUMBERS}
NUMBER = f"({'|'.join(VALUE)})"


def block(color, level):
    return Thing("square", color, 20, 40, 80 - 21 * level)


def tower(*colors):
    return tuple(block(color, level) for level, color in enumerate(colors))


def truth_of(pattern, maker, boxes, tries=20000):
    """{text: truth} of the statements of a maker that match the whole pattern."""
    rng, found = random.Random(0), {}
    for _ in range(tries):
        text, holds = maker(rng)
        text = " ".join(text.split())
        if re.fullmatch(pattern, text):
            found[text] = bool(holds(boxes))
    assert found, pattern
    return found


def test_top_base_and_second_blocks_are_counted_from_their_end():
    towers = (tower("blue", "black", "yellow"), tower("black"), tower("yellow", "blue"))
    said = truth_of(r"there is a tower with a (\w+) block (at|as) .*", about_towers, towers)
    assert said["there is a tower with a yellow block at the top"]
    assert said["there is a tower with a black block at the base"]
    assert said["there is a tower with a black block as the second block"]
    assert said["there is a tower with a yellow block as the second block from the top"]
    assert not said["there is a tower with a yellow block as the second block"]


def test_above_and_below_are_about_neighbours():
    towers = (tower("blue", "black", "yellow"), tower("black"), tower("yellow"))
    said = truth_of(r"there is a tower with a \w+ block (above|below) a \w+ block", about_towers, towers)
    true = {text for text, holds in said.items() if holds}
    pairs = (
        "black block above a blue",
        "blue block below a black",
        "yellow block above a black",
        "black block below a yellow",
    )
    assert true == {f"there is a tower with a {pair} block" for pair in pairs}


@pytest.mark.parametrize("seed", range(10))
def test_counts_of_blocks_compare_as_their_words_say(seed):
    towers = think_up_boxes(random.Random(seed), towers=True)
    count = sum(map(len, towers))
    said = truth_of(rf"there (is|are) (at least|at most|exactly|only) {NUMBER} blocks?", about_towers, towers)
    for text, holds in said.items():
        words, number = re.search(rf"(least|most|exactly|only) {NUMBER}", text).groups()
        assert holds == {"least": count >= VALUE[number], "most": count <= VALUE[number]}.get(
            words, count == VALUE[number]
        )


def test_touching_is_about_the_box_s_own_sides():
    corner, right = Thing("circle", "blue", 10, 90, 90), Thing("square", "black", 30, 70, 20)
    inside = Thing("circle", "yellow", 20, 1, 79)
    pattern = r"there is a (circle|square|triangle|\w+ circle) touching .*"
    said = truth_of(pattern, about_boxes, ((corner,), (right,), (inside,)))
    assert said["there is a circle touching a corner"] and not said["there is a square touching a corner"]
    assert said["there is a square touching the right wall"] and not said["there is a square touching the base"]
    assert said["there is a blue circle touching the base"] and not said["there is a yellow circle touching the wall"]


@pytest.mark.parametrize("towers", [True, False])
def test_each_statement_is_true_of_half_of_the_pictures_it_is_made_for(towers):
    rng = random.Random(1)
    pictures = [think_up_boxes(rng, towers) for _ in range(4)]
    stated = statements(pictures, rng, towers, 40)
    assert len({text for text, _ in stated}) == 40 and all(sum(labels) == 2 for _, labels in stated)
    assert all(("tower" in text or "block" in text) == towers for text, _ in stated)


def test_plurals_and_verbs_agree():
    rng = random.Random(2)
    for _ in range(3000):
        text = " ".join((about_boxes if rng.random() < 0.5 else about_towers)(rng)[0].split())
        assert not re.search(r"\bare (at least |at most |exactly |only )?(1|one)\b", text), text
        assert not re.search(r"\b(boxs|1 boxes|one boxes|1 blocks|one blocks|2 block|two block|no \w+s)\b", text), text


def test_a_named_box_is_the_one_that_counts():
    towers = (tower("blue"), tower("black", "yellow"), tower("yellow"))
    said = truth_of(r"the \w+ tower has a \w+ block at the top", about_towers, towers)
    assert {text.split()[1] for text, holds in said.items() if holds and "yellow" in text} == {"middle", "right"}
    assert (
        not said["the left tower has a black block at the top"] and said["the left tower has a blue block at the top"]
    )
