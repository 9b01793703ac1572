"""What a tagger makes of a caption: tokens with their positions in it, and noun chunks."""

import re
from typing import NamedTuple

from clip_vl.engine.errors import UserError

MAX_CHARACTERS = 10_000  # of a caption; more is no caption, and costs a tagger minutes

# A word stops before its clitic; hyphens, slashes and all other signs stand alone, as in spaCy's English tokens.
TOKEN = re.compile(
    r"\d+(?:[.,]\d+)*|(?:[^\W\d_]+(?=n['’]t\b))|n['’]t\b|['’](?:s|re|ve|ll|d|m)\b|[^\W_]+|\S", re.IGNORECASE
)


class Token(NamedTuple):
    """text is caption[start:end]; space: whether white space follows; tag: Penn Treebank; pos: universal class."""

    text: str
    start: int
    end: int
    space: bool
    tag: str
    pos: str


class Parse(NamedTuple):
    """chunks: (first, last + 1) token positions of the noun phrases, in order, none inside another."""

    text: str
    tokens: tuple
    chunks: tuple


def checked(caption):
    """The caption, unless it is too long for one: then a UserError."""
    if len(caption) > MAX_CHARACTERS:
        raise UserError(f"a caption of {len(caption):,} characters ({caption[:40]!r}...) cannot be tagged; "
                        f"at most {MAX_CHARACTERS:,} are")  # fmt: skip
    return caption


def split_tokens(caption):
    """(start, end) of every token."""
    return [match.span() for match in TOKEN.finditer(checked(caption))]
