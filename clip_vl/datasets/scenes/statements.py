"""What is said about two pictures: statements that only both of them decide, as NLVR2 has them.

As there, a statement is made for a set of four pairs and is true of two of them and false of the other two, so that
the words alone say nothing. Whoever also sees one picture of each pair gets about 63 % right: half of the statements
of which it says nothing, such as "exactly one image contains a ring", and up to 75 % of others, such as "both images
contain a ring", which is false wherever one is missing.
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
    """A way of speaking about two pictures."""

    subject: str  # what it is about; the statements of a set differ in it
    text: str
    of_count: Callable  # what matters of how many things there are in a picture
    truth: Callable  # of what matters of the left and of the right one
    allowed: int  # how many of four pairs may be got right from one picture of each: 2 is a coin, 3 the least for some


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
    """At most `count` statements, each about another subject and another kind of thing.

    Subjects that one picture says nothing about come first. Then each form is as likely as the others, and each kind
    of thing: the many coloured shapes would crowd out the rest.
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
    """The statements that are true of half of the pairs and that one picture of each pair does not give away."""
    found = []
    for kind, things in KINDS.items():
        for noun, wanted in things:
            counts = [[len(scene.matching(**wanted)) for scene in side] for side in zip(*pairs)]
            if sum(map(bool, counts[0] + counts[1])) < 2:
                continue  # most kinds: no form can be true of two pairs and false of two
            for form in FORMS_OF_TWO:
                left, right = ([form.of_count(count) for count in side] for side in counts)
                labels = [form.truth(a, b) for a, b in zip(left, right)]
                one_sided = max(given_away(left, labels), given_away(right, labels))
                if sum(labels) == PAIRS // 2 and one_sided <= form.allowed:
                    text = form.text.format(one=article(noun), many=plural(noun))
                    found.append(Statement(form, kind, noun, text, labels))
    return found


def given_away(values, labels):
    """How many labels the best guess from the values alone gets right."""
    given = defaultdict(list)
    for value, label in zip(values, labels):
        given[value].append(label)
    return sum(max(sum(answers), len(answers) - sum(answers)) for answers in given.values())
