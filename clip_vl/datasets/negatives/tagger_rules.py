"""The bundled tagger: word lists, suffixes and context, from left to right; adequate for captions, not for prose.

Each word has its possible tags, the likelier first: from the lists of tagger_words.txt and the inflections of its
verbs, else from its suffix. Where several are possible the neighbours decide.
"""

import functools
from pathlib import Path

from clip_vl.datasets.negatives.tagger_forms import inflections
from clip_vl.datasets.negatives.tagger_tokens import Parse, Token, split_tokens
from clip_vl.engine.readers.text import read_lines

CLOSED = {
    "DT": "a an the this these those some any every each no both all another either neither",
    "PRP$": "his her its their my your our",
    "PRP": "he she it they him them himself herself itself themselves i you we me us ourselves yourself each-other",
    "IN": "in on at of with by from for over under into onto through near behind beside between across against along "
          "around above below beneath inside outside during while as after before than like off upon within without "
          "toward towards beyond among amongst amid underneath atop if because although though since until whether "
          "past per via despite except about throughout alongside aboard up-to opposite besides",
    "RP": "up down out off away",
    "TO": "to",
    "CC": "and or but nor & plus",
    "MD": "can could will would should may might must shall 'll 'd",
    "WDT": "that which",
    "WP": "who what whom whose",
    "WRB": "when where how why",
    "EX": "there",
    "VBZ": "is has does 's",
    "VBP": "are am have do 're 've 'm",
    "VBD": "was were had did",
    "VBN": "been done",
    "VBG": "being having doing",
    "VB": "be",
    "RB": "not n't n’t",
}  # fmt: skip
POS = {"DT": "DET", "PRP$": "PRON", "PRP": "PRON", "IN": "ADP", "RP": "ADP", "TO": "PART", "CC": "CCONJ", "MD": "AUX",
       "WDT": "PRON", "WP": "PRON", "WRB": "SCONJ", "EX": "PRON", "CD": "NUM", "POS": "PART", "RB": "ADV",
       "JJ": "ADJ", "JJR": "ADJ", "JJS": "ADJ", "NN": "NOUN", "NNS": "NOUN", "NNP": "PROPN"}  # fmt: skip
NOUNS, ADJECTIVES = {"NN", "NNS", "NNP"}, {"JJ", "JJR", "JJS"}
BE = {"is", "are", "was", "were", "be", "been", "being", "'s", "'re", "looks", "look", "looking", "seems", "appears"}
SINGULAR = {"a", "an", "one", "this", "each", "every", "another"}
OPENS_NOUN = {"DT", "PRP$", "POS", "CD", "JJ", "JJR", "JJS"}  # what a noun or its adjectives follow
AFTER_VERB = {"DT", "IN", "PRP$", "PRP", "CD", "RB", "RP", "TO", "VBG", "JJ", "CC", "WRB", ".", ""}
ADJECTIVE_ENDINGS = ("ous", "ful", "less", "ish", "able", "ible", "ical", "ive", "ary", "ic", "esque", "ern", "like")
SINGULAR_ENDINGS = ("ss", "us", "is")


@functools.cache
def lexicon():
    """word -> its possible tags, the likelier first."""
    words = {}

    def add(word, *tags):
        known = words.setdefault(word, [])
        known.extend(tag for tag in tags if tag not in known)

    lists = _lists()
    for word in lists["noun"]:
        add(word, "NN")
    for word in lists["noun_verb"]:
        add(word, "NN")
    for word in lists["plural"]:
        add(word, "NNS")
    for word in lists["either"]:
        add(word, "JJ", "NN")
    for word in lists["adjective"]:
        add(word, "JJ")
    for word in lists["adverb"]:
        add(word, "RB")
    for word in lists["noun_verb"]:
        for form, tag in inflections(word):
            add(form, *(("NNS", tag) if tag == "VBZ" else (tag,)))
    nouns = set(lists["noun"])
    for word in lists["verb"]:
        for form, tag in inflections(word):
            add(form, *((tag, "NNS") if tag == "VBZ" and form[:-1] in nouns else (tag,)))
    for word in lists["numeral"]:
        words[word] = ["CD"]
    for tag, text in CLOSED.items():
        for word in text.split():
            words[word] = [tag]
    return {word: tuple(tags) for word, tags in words.items()}


def _lists():
    """The sections of tagger_words.txt."""
    lists = {}
    for line in read_lines(Path(__file__).with_name("tagger_words.txt")):
        if line.startswith("["):
            section = lists.setdefault(line.strip("[]"), [])
        elif line and not line.startswith("#"):
            section.extend(line.split())
    return lists


def possible_tags(word):
    """The tags a lower-cased word may have, the likelier first."""
    known = lexicon().get(word)
    if known:
        return known
    if not word[0].isalnum():
        return (".",)
    if word[0].isdigit():
        return ("CD",)
    return _by_suffix(word)


def _by_suffix(word):
    if word.endswith("ing") and len(word) > 5:
        return ("VBG", "NN")
    if word.endswith("ed") and len(word) > 4:
        return ("VBN", "VBD")
    if word.endswith("ly") and len(word) > 4:
        return ("RB",)
    if word.endswith(ADJECTIVE_ENDINGS) and len(word) > 5:
        return ("JJ",)
    if word.endswith("s") and not word.endswith(SINGULAR_ENDINGS) and len(word) > 3:
        return ("NNS",)
    return ("NN",)


class BundledTagger:
    """`tagger(caption) -> Parse`, with nothing to install."""

    name = "bundled 2"

    def __call__(self, caption):
        spans = split_tokens(caption)
        words = [caption[start:end] for start, end in spans]
        tags = tag_words([word.lower().replace("’", "'") for word in words])
        tokens = tuple(
            Token(word, start, end, caption[end : end + 1].isspace(), tag, coarse(tag, word))
            for word, (start, end), tag in zip(words, spans, tags)
        )
        return Parse(caption, tokens, tuple(noun_chunks(words, tags)))


def coarse(tag, word):
    """The universal class of a Penn tag."""
    if tag.startswith("VB"):
        return "AUX" if word.lower() in BE - {"looks", "look", "looking", "seems", "appears"} else "VERB"
    return POS.get(tag, "PUNCT")


def tag_words(words):
    """Penn tags of lower-cased words."""
    options = [possible_tags(word) for word in words]
    tags = []
    for i, word in enumerate(words):
        tags.append(_choose(word, options, i, words, tags))
    return tags


def _choose(word, options, i, words, tags):
    """The tag of word i, from its options, the tags before it and the options after it."""
    here = options[i]
    before = tags[-1] if tags else ""
    last = words[i - 1] if i else ""
    after = options[i + 1] if i + 1 < len(words) else ("",)
    if word in SPECIAL:
        return SPECIAL[word](words, tags, i, before, last, after)
    if len(here) == 1 and here not in {("VB",), ("VBZ",)}:
        return here[0]
    if word in {"left", "right"} and before in NOUNS and words[i + 1 : i + 2] == ["of"]:
        return "RB"  # "a dog left of a cat"
    if "VBG" in here:
        return _gerund(here, before, after)
    if "VBZ" in here:
        return _plural_or_verb(here, words, tags, before, after)
    if "VB" in here and (before == "MD" or (before == "TO" and not _to_place(words, i - 1, here))):
        return "VB"
    if (
        "VB" in here
        and "JJ" not in here
        and (before in OPENS_NOUN | {"IN", "CC"} or (before == "NN" and _article(words, tags)))
    ):
        return "NN"  # every base verb may be a noun: "a sink", "a young stray"
    if "VB" in here and _is_plural_subject(tags) and _starts_object(after) and not _has_verb(words, tags):
        return "VBP"
    if "JJ" in here and "VBN" in here:
        return "JJ" if before in OPENS_NOUN or last in BE or _nounish(after) else "VBN"
    if "JJ" in here:
        return _adjective(here, words, tags, i, before, last, after)
    if "NN" in here:
        return "NN" if "VBD" not in here or before in OPENS_NOUN | {"IN", "NN", ""} else "VBD"
    if "RB" in here:
        return "RB"
    if "VBN" in here or "VBD" in here:
        return "VBD" if "VBD" in here and before in {"PRP", "WDT", "WP"} else ("VBN" if "VBN" in here else "VBD")
    return "VBP" if here[0] == "VB" and before in NOUNS | {"PRP"} else here[0]


def _nounish(options):
    """Whether the next word may be a noun or an adjective before one."""
    return bool({"NN", "NNS", "NNP", "JJ"} & set(options[:2])) or options[0] in {"VBN"}


def _starts_object(options):
    return bool(AFTER_VERB & set(options))


def _has_verb(words, tags):
    """Whether the clause has its finite verb."""
    for word, tag in zip(reversed(words[: len(tags)]), reversed(tags)):
        if tag in {"VBZ", "VBP", "MD"}:
            return True
        if tag in {"CC", "WDT", "WP", "WRB"} or word in {"while", "as", "because", "if", "."}:
            return False
    return False


def _is_plural_subject(tags):
    return bool(tags) and tags[-1] in {"NNS", "PRP", "WDT", "WP"}


def _to_place(words, i, options):
    """Whether the "to" at i is a preposition: "next to water", "close to a wall"."""
    return (i > 0 and words[i - 1] in {"next", "close", "adjacent", "attached", "up", "tied", "connected"}) or (
        options[0] not in {"VB"} and i > 0 and words[i - 1].endswith("ing")
    )


def _gerund(here, before, after):
    """A word in -ing: a noun where the lists know it as one and it stands as one, else the verb."""
    if "NN" not in here:
        return "JJ" if here[0] == "JJ" and before in OPENS_NOUN else "VBG"
    if here[0] == "VBG":  # known as a noun by its suffix alone
        return "VBG"
    if before in NOUNS | {"VBZ", "VBP", "VBD", "PRP"}:
        return "VBG" if {"DT", "PRP$", "IN", "RP", "RB", "TO", "CD"} & set(after) and "VBG" in here else "NN"
    return "NN"


def _plural_or_verb(here, words, tags, before, after):
    """A word in -s: "two signs" or "he signs"."""
    if before in OPENS_NOUN | {"IN"} or (before in {"VBG", "VBZ", "VBP", ""} and "NNS" in here):
        return "NNS"
    if before == "NN" and after[0] in {"", "."} and _article(words, tags) not in SINGULAR:
        return "NNS"
    if "NNS" not in here:
        return "VBZ"
    if (
        _has_verb(words, tags)
        or not _starts_object(after)
        or (before == "CC" and not {"DT", "PRP$", "CD"} & set(after))
    ):
        return "NNS"
    if here.index("VBZ") < here.index("NNS") or before in {"NNS", "PRP", "WDT", "WP", "RB"}:
        return "VBZ"
    return "VBZ" if before == "NN" and _article(words, tags) in SINGULAR | {"the"} else "NNS"


def _article(words, tags):
    """The determiner of the noun phrase that ends here, or ""."""
    for word, tag in zip(reversed(words[: len(tags)]), reversed(tags)):
        if tag in {"DT", "PRP$", "CD"}:
            return word
        if tag not in NOUNS | ADJECTIVES | {"VBN", "VBG"}:
            return ""
    return ""


def _adjective(here, words, tags, i, before, last, after):
    """A word that may be an adjective and something else."""
    if before == "CC" and tags[-2:-1] == ["JJ"]:
        return "JJ"
    if _nounish(after) or _joined_adjective(words, i) or last in BE or (before == "RB" and "RB" not in here):
        return "JJ" if "RB" not in here or before in OPENS_NOUN or last in BE or here[0] == "JJ" else "RB"
    if "NN" in here and before in OPENS_NOUN | {"IN", "CC", "VBG", "NN"}:
        return "NN"
    if "RB" in here and before not in OPENS_NOUN:
        return "RB"
    return "JJ" if here[0] not in {"NN", "VB"} else here[0]


def _joined_adjective(words, i):
    """Whether word i is the first of "black and white cats"."""
    return (
        words[i + 1 : i + 2] in (["and"], [","], ["-"])
        and i + 3 < len(words)
        and ("JJ" in possible_tags(words[i + 2]) and _nounish(possible_tags(words[i + 3])))
    )


# ---- words with a rule of their own


def _her(words, tags, i, before, last, after):
    return "PRP$" if _nounish(after) or after[0] in {"VBG", "CD", "VB"} else "PRP"


def _that(words, tags, i, before, last, after):
    return "WDT" if before in NOUNS or not _nounish(after) else "DT"


def _like(words, tags, i, before, last, after):
    return "VB" if before in {"MD", "TO"} else "IN"


def _particle(words, tags, i, before, last, after):
    if {"DT", "PRP$"} & set(after):
        return "IN"
    return "RP" if before.startswith("VB") else "RB" if before == "RB" else "IN"


def _clitic(words, tags, i, before, last, after):
    return "VBZ" if (before in {"EX", "PRP", "WDT"} and last != "it") or last == "there" else "POS"


def _no_two(words, tags, i, before, last, after):
    return "NN" if before in {"DT", "JJ"} and not _nounish(after) else "CD"


def _next(words, tags, i, before, last, after):
    return "JJ" if last in BE or before in OPENS_NOUN | {"IN"} or _nounish(after) else "RB"


SPECIAL = {"her": _her, "that": _that, "like": _like, "'s": _clitic, "one": _no_two, "next": _next,
           **dict.fromkeys(("up", "down", "out", "off", "away"), _particle)}  # fmt: skip


# ---- noun chunks


def noun_chunks(words, tags):
    """(first, last + 1) of each noun phrase: determiner, numbers, adjectives, participles, nouns."""
    i, n = 0, len(tags)
    while i < n:
        end = _chunk_end(words, tags, i)
        if end:
            yield i, end
        i = end or i + 1


def _chunk_end(words, tags, i):
    """Where the noun phrase that starts at i ends, or None."""
    end, start, n = None, i, len(tags)
    while i < n:
        tag = tags[i]
        if tag in NOUNS:
            end = i + 1
        elif tag in {"DT", "PRP$"}:
            if i > start and tags[i - 1] not in {"DT", "POS"}:
                break
        elif tag in {"VBN", "VBG"}:
            if end or i == start or tags[i - 1] not in OPENS_NOUN | {"RB"}:
                break
        elif tag == "CC" or words[i] in {",", "-"}:
            if (end and words[i] != "-") or i == start or i + 1 >= n or tags[i - 1] not in ADJECTIVES | {"CD"} | NOUNS:
                break
            if tags[i + 1] not in ADJECTIVES | {"VBN", "CD", "NN", "VBG"}:
                break
        elif tag == "POS":
            if not end:
                break
        elif tag == "RB":
            if (
                end
                or i + 1 >= n
                or tags[i + 1] not in ADJECTIVES | {"VBN"}
                or (i > start and tags[i - 1] not in OPENS_NOUN)
            ):
                break
        elif tag not in OPENS_NOUN or (end and tag in ADJECTIVES | {"CD"}):
            break
        i += 1
    return end
