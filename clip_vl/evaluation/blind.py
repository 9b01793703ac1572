"""A scorer of captions alone: what it gets right needs no image.

NGrams: how likely the words of a caption are to follow each other, by a trigram model of given captions (Jelinek-Mercer
interpolation with fixed weights), as the mean log-likelihood of its words. Without captions to train on, `shortness`:
the caption with fewer characters wins, which is right where negatives have something added.
"""

import hashlib
import math
import re
from collections import Counter
from pathlib import Path

import numpy as np

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.readers.text import not_utf8, split_lines

WORD = re.compile(r"\w+|[^\w\s]")
WEIGHTS = (0.6, 0.3, 0.1)  # of trigrams, bigrams, words
START, END = "<s>", "</s>"


class NGrams:
    """model = NGrams(captions); model(caption) -> mean log-likelihood per word."""

    def __init__(self, captions):
        self.counts, self.contexts = Counter(), Counter()
        self.words, self.total = Counter(), 0
        for caption in captions:
            tokens = _tokens(caption)
            for i in range(2, len(tokens)):
                for n in (2, 3):
                    gram = tuple(tokens[i - n + 1 : i + 1])
                    self.counts[gram] += 1
                    self.contexts[gram[:-1]] += 1
                self.words[tokens[i]] += 1
        self.total = sum(self.words.values())

    def __call__(self, caption):
        tokens = _tokens(caption)
        logs = [math.log(self.probability(tokens[i - 2], tokens[i - 1], tokens[i])) for i in range(2, len(tokens))]
        return sum(logs) / len(logs)

    def probability(self, first, second, word):
        """P(word | first, second); the unknown words share one count of the unigrams."""
        three, two, one = WEIGHTS
        unigram = (self.words[word] + 1) / (self.total + len(self.words) + 1)
        return (
            three * self._share((first, second, word)) + two * self._share((second, word)) + one * unigram
        )  # a context that was never seen gives nothing, which is the same for all words after it

    def _share(self, gram):
        context = self.contexts[gram[:-1]]
        return self.counts[gram] / context if context else 0.0


def shortness(caption):
    """Minus the number of characters."""
    return -float(len(caption))


class BlindScorer:
    """Scores of the captions of a probe alone: no image is opened, and none is missing.

    captions: text file with a caption a line, for `NGrams`; None for `shortness`
    """

    threshold, scored_by = None, "captions alone"

    def __init__(self, captions):
        self.likely, self.data = shortness, None
        if captions:
            try:
                self.data = Path(captions).read_bytes()
                self.likely = NGrams(split_lines(self.data.decode("utf-8-sig")))
            except OSError as error:
                raise UserError(f"--blind_captions {captions} cannot be read: {error.strerror}") from None
            except UnicodeDecodeError:
                raise not_utf8(captions, self.data) from None

    def inputs(self):
        return {"blind": hashlib.sha256(self.data).hexdigest() if self.data else "shorter"}

    def scores(self, plan, in_parts=None):
        """({(crop, text): score}, zeros (N,)) of a `Plan` on rank 0, else None; nothing is kept in parts."""
        if dist.rank():
            return None
        of_text = [self.likely(text) for text in plan.texts]
        return {pair: of_text[pair[1]] for pair in map(tuple, plan.pairs().tolist())}, np.zeros(len(plan.crops))


def _tokens(caption):
    return [START, START, *WORD.findall(caption.lower()), END]
