"""Pairs of words that follow each other in a set of captions: other pairs give a false caption away."""

import re
from itertools import pairwise

WORDS = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


class WordPairs:
    """`WordPairs(captions)(text)`: whether every two neighbouring words of the text are neighbours in some caption."""

    def __init__(self, captions):
        self.seen = set()
        for caption in captions:
            self.seen.update(_pairs(caption))

    def __call__(self, text):
        return all(pair in self.seen for pair in _pairs(text))


def _pairs(text):
    """Neighbours of a sentence in lower case, its beginning and its end included."""
    return pairwise(["", *WORDS.findall(text.lower()), ""])
