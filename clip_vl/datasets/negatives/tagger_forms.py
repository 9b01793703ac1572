"""Inflections of English verbs."""

VOWELS = "aeiou"


def inflections(entry):
    """(form, tag) of a verb: "walk", or with irregular past and participle "ride/rode/ridden"."""
    base, *irregular = entry.split("/")
    past, participle = irregular or (add_ed(base), add_ed(base))
    yield from ((base, "VB"), (add_s(base), "VBZ"), (add_ing(base), "VBG"), (participle, "VBN"), (past, "VBD"))


def add_s(base):
    if base.endswith(("s", "x", "z", "ch", "sh", "o")):
        return base + "es"
    return base[:-1] + "ies" if _consonant_y(base) else base + "s"


def add_ing(base):
    if base.endswith("ie"):
        return base[:-2] + "ying"
    if base.endswith("e") and not base.endswith(("ee", "ye", "oe")):
        return base[:-1] + "ing"
    return _doubled(base) + "ing"


def add_ed(base):
    if base.endswith("e"):
        return base + "d"
    return base[:-1] + "ied" if _consonant_y(base) else _doubled(base) + "ed"


def _consonant_y(base):
    return base.endswith("y") and base[-2] not in VOWELS


def _doubled(base):
    """The last consonant of a one-syllable word doubles: "sit" -> "sitt"."""
    syllables = sum(a in VOWELS and (i == 0 or base[i - 1] not in VOWELS) for i, a in enumerate(base))
    closed = base[-1] not in VOWELS + "wxy" and base[-2:-1] in tuple(VOWELS) and base[-3:-2] not in tuple(VOWELS)
    return base + base[-1] if syllables == 1 and closed and len(base) > 2 else base
