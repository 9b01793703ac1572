"""The built-in scenes as a probe: true descriptions against false ones, in the seven forms of SugarCrepe and more.

A description of `shapes --size pairs` names everything in its image with all four attributes, so what is false of the
image follows from the text. Two of the negatives are the columns of the table; the others are made here, a draw each.
"""

from collections import Counter
from pathlib import Path

from clip_vl.datasets.probes.items import Crop, Item, Probe, Row, expected_form
from clip_vl.datasets.probes.items import read_bytes as read_annotation
from clip_vl.datasets.scenes.scene import ATTRIBUTES
from clip_vl.datasets.scenes.sentences import RELATIONS, article, plural
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.random import numpy_rng
from clip_vl.engine.readers.text import split_lines

COLUMNS = ["filepath", "title", "attribute_swap", "relation_swap"]
ORDER = ("size", "color", "texture", "shape")
NUMBERS = ("zero", "one", "two", "three", "four")
PLACES = {
    " " + place
    for place in ("top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right")
}
SUBSETS = ("swap_att", "swap_rel", "swap_obj", "replace_att", "replace_rel", "add_obj", "add_att", "count")


def read_scenes(folder, seed=9595):
    """The Probe of <folder>/test.tsv, or of a file."""
    path = Path(folder) if Path(folder).is_file() else Path(folder) / "test.tsv"
    if not path.is_file():
        raise UserError(f"{path} is not there; `python -m clip_vl.shapes --size pairs --output {path.parent}` draws it")
    probe = Probe("scenes", "captions", "wrong", [], [], ("{}",))
    header, *lines = split_lines(read_annotation(path, probe.files).decode("utf-8-sig"))
    if header.split("\t") != COLUMNS:
        raise DataError(f"{path}:1: the columns are not {', '.join(COLUMNS)}")
    for number, line in enumerate(lines):
        with expected_form(f"{path}:{number + 2}"):
            name, title, *swaps = line.split("\t")
            pairs = [(title, swap) for swap in swaps] + made_pairs(title, numpy_rng(seed, "scene probe", number))
            for subset, pair in zip(SUBSETS, pairs, strict=True):
                probe.defects[f"{subset}: none to be had"] += not pair[1]
                if pair[1]:
                    probe.items.append(Item(f"{subset}/{number}", (subset,), (Crop(name),), pair))
    if not probe.items:
        raise DataError(f"{path} has no rows")
    there = Counter(item.groups[0] for item in probe.items)
    subsets = tuple(subset for subset in SUBSETS if there[subset])
    probe.rows = [Row(subset, "accuracy", (subset,)) for subset in subsets]
    probe.rows.append(Row("macro", "accuracy", subsets, (1 / len(subsets),) * len(subsets)))
    return probe


def things_of(title):
    """[(look, start, end)]: what a description names; look: {"size": ..., "color", "texture", "shape"}."""
    words, found, position = title.replace(",", " ").split(" "), [], 0
    spans = []
    for word in words:
        spans.append((position, position + len(word)))
        position += len(word) + 1
    for i in range(len(words) - 3):
        look = dict(zip(ORDER, words[i : i + 4]))
        if all(look[name] in ATTRIBUTES[name] for name in ORDER):
            found.append((look, spans[i][0], spans[i + 3][1]))
    return found


def made_pairs(title, rng):
    """(true, false) of each of swap_obj, replace_att, replace_rel, add_obj, add_att and count; false: "" for none."""
    things = things_of(title)
    if not things:
        raise ValueError(f"{title!r:.80} describes nothing")
    return [
        (title, _swap_things(title, things, rng)),
        (title, _other_look(title, things, rng)),
        (title, _other_relation(title, things)),
        (title, _one_more(title, things, rng)),
        *_marked_and_counted(things, rng),
    ]


def _noun(look):
    return " ".join(look[name] for name in ORDER)


def _with(title, thing, text):
    """The title with another noun for a thing, and the article it takes."""
    look, start, end = thing
    head, tail = title[:start], title[end:]
    head = head[: -len(article(_noun(look))) + len(_noun(look))]
    return head + article(text) + tail


def _swap_things(title, things, rng):
    """Two things with different shapes, both named with their places, change them."""
    places = [title[end:].split(",")[0] for _, _, end in things]
    pairs = [
        (i, j)
        for i in range(len(things))
        for j in range(i)
        if things[i][0]["shape"] != things[j][0]["shape"]
        and PLACES >= {places[i], places[j]}
        and places[i] != places[j]
    ]
    if not pairs:
        return ""
    i, j = pairs[rng.integers(len(pairs))]
    later, sooner = sorted((things[i], things[j]), key=lambda thing: -thing[1])
    return _with(_with(title, later, _noun(sooner[0])), sooner, _noun(later[0]))


def _other_look(title, things, rng):
    """One attribute of one thing is another, such as no object in the image has together with the rest."""
    thing = things[rng.integers(len(things))]
    nouns = {_noun(look) for look, _, _ in things}
    names = [ORDER[i] for i in rng.permutation(len(ORDER))]  # of some, such as the size, both may be in the image
    looks = [thing[0] | {name: value} for name in names for value in rng.permutation(ATTRIBUTES[name]).tolist()]
    return _with(title, thing, next(noun for noun in map(_noun, looks) if noun not in nouns))


def _other_relation(title, things):
    """The relation of two things is its opposite; no thing is like another, for which it could be true."""
    if len({_noun(look) for look, _, _ in things}) < len(things):
        return ""
    opposite = {
        words: other
        for words, (axis, sign) in RELATIONS.items()
        for other, (axis2, sign2) in RELATIONS.items()
        if axis == axis2 and sign == -sign2
    }
    for words in sorted(RELATIONS, key=len, reverse=True):
        if f" {words} " in title:
            return title.replace(f" {words} ", f" {opposite[words]} ", 1)
    return ""


def _one_more(title, things, rng):
    """A thing more, of a shape and colour that is not there."""
    looks = [{name: ATTRIBUTES[name][rng.integers(len(ATTRIBUTES[name]))] for name in ORDER} for _ in range(20)]
    there = {(look["color"], look["shape"]) for look, _, _ in things}
    new = next(look for look in looks if (look["color"], look["shape"]) not in there)
    head, _, tail = title.rpartition(", on a ")
    return f"{head}, {article(_noun(new))}, on a {tail}"


def _marked_and_counted(things, rng):
    """add_att: "a ring" against "a red ring" where no ring is red; count: how many things of a shape there are."""
    look = things[rng.integers(len(things))][0]
    shape = look["shape"]
    colours = {thing["color"] for thing, _, _ in things if thing["shape"] == shape}
    others = [colour for colour in ATTRIBUTES["color"] if colour not in colours]
    added = f"there is {article(shape)}", f"there is {article(others[rng.integers(len(others))] + ' ' + shape)}"
    number = sum(thing["shape"] == shape for thing, _, _ in things)
    wrong = [n for n in (1, 2, 3) if n != number][rng.integers(2)]
    return added, (_counted(number, shape), _counted(wrong, shape))


def _counted(number, shape):
    return f"there are {NUMBERS[number]} {plural(shape)}" if number > 1 else f"there is one {shape}"
