"""Statements about two images that only both together decide, as in NLVR2.

A statement is made for a set of four pairs; it is true of two pairs and false of two, so that the words alone reach
50 %. The words and one image of each pair reach about 63 %: 50 % of statements such as "exactly one image contains a
ring", and up to 75 % of others such as "both images contain a ring", which is false where one image has none.
"""

import operator
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

from clip_vl.datasets.scenes.scene import ATTRIBUTES
from clip_vl.datasets.scenes.sentences import article, plural

PAIRS = 4
KIND_NAMES = ("", "shape", "color", "color shape", "texture", "size", "texture shape", "size shape")


def kinds_of_things():
    """{which attributes: [(noun, wanted), ...]}, such as ("striped ring", {"texture": "striped", "shape": "ring"})."""
    kinds = {}
    for names in KIND_NAMES:
        wanted = [{}]
        for name in names.split():
            wanted = [w | {name: value} for w in wanted for value in ATTRIBUTES[name]]
        kinds[names] = [(" ".join([*w.values()] + ["thing"] * ("shape" not in w)), w) for w in wanted]
    return kinds


KINDS = kinds_of_things()


class Form(NamedTuple):
    """A form of statements about two images."""

    subject: str  # the statements of a set have different subjects
    text: str
    of_count: Callable  # from the number of objects in an image to the value that decides
    truth: Callable  # of the values of the left and of the right image
    allowed: int  # most of four pairs that one image of each may decide: 2 is chance, for some forms 3 is the least


class Statement(NamedTuple):
    form: Form
    kind: str  # of KINDS
    noun: str
    text: str
    labels: list  # truth per pair


FORMS_OF_TWO = (
    Form("exactly one", "exactly one image contains {one}", bool, operator.ne, 2),
    Form("only one", "only one of the two images contains {one}", bool, operator.ne, 2),
    Form("same", "the number of {many} is the same in both images", int, operator.eq, 2),
    Form("not the same", "the number of {many} is not the same in both images", int, operator.ne, 2),
    Form("total", "there are exactly two {many} in total", int, lambda a, b: a + b == 2, 3),
    Form("total", "there are exactly three {many} in total", int, lambda a, b: a + b == 3, 3),
    Form("total", "there are exactly four {many} in total", int, lambda a, b: a + b == 4, 3),
    Form("presence", "both images contain {one}", bool, operator.and_, 3),
    Form("presence", "at least one of the images contains {one}", bool, operator.or_, 3),
    Form("side", "the left image contains {one} and the right image does not", bool, operator.gt, 3),
    Form("side", "the right image contains {one} and the left image does not", bool, operator.lt, 3),
    Form("more", "there are more {many} in the left image than in the right image", int, operator.gt, 3),
    Form("more", "there are more {many} in the right image than in the left image", int, operator.lt, 3),
)


def statements(pairs, rng, count):
    """At most `count` statements, with different subjects and different kinds of objects.

    Subjects that one image does not decide come first. Forms and kinds of objects are drawn uniformly: by number,
    coloured shapes would dominate.
    """
    options, chosen = fitting(pairs), []
    while options and len(chosen) < count:
        least = min(option.form.allowed for option in options)
        left = [option for option in options if option.form.allowed == least]
        for part in (lambda s: s.form.subject, lambda s: s.form.text, lambda s: s.kind, lambda s: s.noun):
            value = rng.choice(sorted({part(option) for option in left}))
            left = [option for option in left if part(option) == value]
        (one,) = left
        chosen.append(one)
        options = [o for o in options if o.form.subject != one.form.subject and o.noun != one.noun]
    return chosen


def fitting(pairs):
    """The statements that are true of half of the pairs and that one image of each pair does not decide."""
    found = []
    for kind, things in KINDS.items():
        for noun, wanted in things:
            counts = [[len(scene.matching(**wanted)) for scene in side] for side in zip(*pairs)]
            if sum(map(bool, counts[0] + counts[1])) < 2:
                continue  # true of most kinds; no form can then be true of two pairs and false of two
            for form in FORMS_OF_TWO:
                left, right = ([form.of_count(count) for count in side] for side in counts)
                labels = [form.truth(a, b) for a, b in zip(left, right)]
                one_sided = max(given_away(left, labels), given_away(right, labels))
                if sum(labels) == PAIRS // 2 and one_sided <= form.allowed:
                    text = form.text.format(one=article(noun), many=plural(noun))
                    found.append(Statement(form, kind, noun, text, labels))
    return found


def given_away(values, labels):
    """The number of labels that the best guess from the values alone gets right."""
    given = defaultdict(list)
    for value, label in zip(values, labels):
        given[value].append(label)
    return sum(max(sum(answers), len(answers) - sum(answers)) for answers in given.values())
