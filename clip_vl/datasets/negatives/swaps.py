"""Hard negative captions: two units of one class are swapped, as in NegCLIP (arXiv:2210.01936, section 4.1).

    parse = tagger("A brown dog chases a white cat.")
    [swap.text for swap in enumerate_swaps(parse)]     "A white dog chases a brown cat.", ...
    draw_swaps(parse, numpy_rng(seed, "caption swaps", row), allowed=WordPairs(captions))

Units are singular nouns, plural nouns, adjectives, adverbs, verbs with their particles, and noun phrases of more than
two tokens. They are spliced by character offsets, so that all other spacing stays. Left out is what describes the same
image: captions equal but for case and spacing, units joined by "and" or "or", adjectives of one noun.
"""

import itertools
from typing import NamedTuple

CLASSES = ("noun", "plural", "adjective", "adverb", "verb", "phrase")
CLASS_OF_TAG = {"NN": "noun", "NNP": "noun", "NNS": "plural", "NNPS": "plural", "JJ": "adjective", "JJR": "adjective",
                "JJS": "adjective", "RB": "adverb", "RBR": "adverb", "RBS": "adverb"}  # fmt: skip
SEED_CLASSES = ("NOUN", "ADJ", "VERB", "ADV", "phrase")
SEED_DRAWS = 5
SHORTEST_PHRASE = 3  # tokens
IN_A_LIST = {"DT", "PRP$", "CD", "JJ", "JJR", "JJS", "NN", "NNS", "NNP", "NNPS", "RB", "VBN", "POS", "CC"}
DETERMINERS = {"DT", "PRP$"}


class Unit(NamedTuple):
    """Tokens first .. last - 1 of a caption, its characters start .. end - 1."""

    kind: str
    first: int
    last: int
    start: int
    end: int


class Swap(NamedTuple):
    """kind: the class of the two units; text: the caption with `left` and `right` exchanged."""

    kind: str
    left: Unit
    right: Unit
    text: str


def units(parse):
    """class -> its units, in order. Verbs of another tense are another class: "verb VBG"."""
    found = {}

    def add(kind, first, last):
        start, end = parse.tokens[first].start, parse.tokens[last - 1].end
        found.setdefault(kind, []).append(Unit(kind.split()[0], first, last, start, end))

    for i, token in enumerate(parse.tokens):
        if token.tag in CLASS_OF_TAG:
            add(CLASS_OF_TAG[token.tag], i, i + 1)
        elif token.tag.startswith("VB") and token.pos != "AUX":
            add(f"verb {token.tag}", i, i + 1)
    for first, last in parse.chunks:
        if last - first >= SHORTEST_PHRASE:
            add("phrase", first, last)
    return found


def enumerate_swaps(parse, same_meaning=False):
    """Every swap of a caption, in order of class and position, none twice.

    same_meaning: also those that do not change the described image
    """
    seen = {folded(parse.text)}
    for group in units(parse).values():
        for left, right in itertools.combinations(group, 2):
            swap = exchange(parse, left, right)
            key = folded(swap.text)
            if key not in seen and (same_meaning or not means_the_same(parse, left, right)):
                seen.add(key)
                yield swap


def draw_swaps(parse, rng, seed_variant=False, allowed=lambda text: True):
    """Negative captions of one caption: one swap of each class that has any, or with `seed_variant` five draws.

    rng:     numpy Generator, keyed by the caption's row
    allowed: text -> whether it may be a negative caption; the draws are among those
    returns: list of Swap, none twice, in order of class or of drawing
    """
    if seed_variant:
        return [swap for swap in _draw_five(parse, rng) if allowed(swap.text)]
    groups = {}
    for swap in filter(lambda swap: allowed(swap.text), enumerate_swaps(parse)):
        groups.setdefault(swap.kind, []).append(swap)
    return [groups[kind][rng.integers(len(groups[kind]))] for kind in CLASSES if kind in groups]


def _draw_five(parse, rng):
    """Each draw takes a class, uniform among those with two members, and two of them; tokens are joined by spaces."""
    groups = {kind: [] for kind in SEED_CLASSES}
    for i, token in enumerate(parse.tokens):
        if token.pos in groups:
            groups[token.pos].append(Unit(token.pos, i, i + 1, token.start, token.end))
    for first, last in parse.chunks:
        if last - first >= SHORTEST_PHRASE:
            groups["phrase"].append(Unit("phrase", first, last, parse.tokens[first].start, parse.tokens[last - 1].end))
    groups = [group for group in groups.values() if len(group) > 1]
    found, seen = [], {folded(parse.text)}
    for _ in range(SEED_DRAWS if groups else 0):
        group = groups[rng.integers(len(groups))]
        left, right = (group[i] for i in sorted(rng.choice(len(group), 2, replace=False)))
        swap = exchange(parse, left, right)._replace(text=_joined(parse, left, right))
        if folded(swap.text) not in seen and not means_the_same(parse, left, right):
            seen.add(folded(swap.text))
            found.append(swap)
    return found


def _joined(parse, left, right):
    """The tokens of the swapped caption, one space between each two."""
    t = [token.text for token in parse.tokens]
    a, b, c, d = left.first, left.last, right.first, right.last
    return " ".join(t[:a] + t[c:d] + t[b:c] + t[a:b] + t[d:])


def exchange(parse, left, right):
    """The caption with two units exchanged; a capital that only begins the caption stays at its beginning."""
    text = parse.text
    a, b = text[left.start : left.end], text[right.start : right.end]
    first = parse.tokens[left.first]
    if (
        left.first == 0
        and first.tag != "NNP"
        and first.text[:1].isupper()
        and (first.text[1:].islower() or len(first.text) == 1)
    ):
        a, b = a[:1].lower() + a[1:], b[:1].upper() + b[1:]
    swapped = text[: left.start] + b + text[left.end : right.start] + a + text[right.end :]
    return Swap(left.kind, left, right, swapped)


def folded(text):
    """A caption without case and white space: two captions with the same one differ in nothing that can be seen."""
    return "".join(text.lower().split())


def means_the_same(parse, left, right):
    """Whether the exchange does not change the described image: joined units, or adjectives of one noun."""
    between = {token.tag for token in parse.tokens[left.last : right.first]}
    if left.kind in ("adjective", "ADJ") and not any(tag.startswith(("NN", "VB", "IN", "TO")) for tag in between):
        return True
    if left.kind in ("verb", "VERB"):
        return "CC" in between and between <= {"CC", "RB"}
    return _in_one_list(parse, left, right) and _modifiers(parse, left) == _modifiers(parse, right)


def _in_one_list(parse, left, right):
    """Whether only list items, with a comma or an "and", lie between, and the list has its "and" there or behind."""
    between = parse.tokens[left.last : right.first]
    if not all(token.text == "," or token.tag in IN_A_LIST for token in between):
        return False
    if any(token.tag == "CC" for token in between):
        return True
    behind = itertools.takewhile(lambda t: t.text == "," or t.tag in IN_A_LIST, parse.tokens[right.last :])
    return any(token.text == "," for token in between) and any(token.tag == "CC" for token in behind)


def _modifiers(parse, unit):
    """The other words of the unit's item in its list, but for determiners."""
    first, last = unit.first, unit.last
    while first and _is_in_item(parse.tokens[first - 1]):
        first -= 1
    while last < len(parse.tokens) and _is_in_item(parse.tokens[last]):
        last += 1
    places = [*range(first, unit.first), *range(unit.last, last)]
    return [parse.tokens[i].text.lower() for i in places if parse.tokens[i].tag not in DETERMINERS]


def _is_in_item(token):
    return token.text != "," and token.tag in IN_A_LIST - {"CC"}
