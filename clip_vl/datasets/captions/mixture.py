"""Several sources of captioned images as one: rows, texts and classes numbered through."""

import hashlib
from bisect import bisect_right
from itertools import accumulate

from clip_vl.datasets.captions.source import CaptionSource


class Mixture(CaptionSource):
    """The rows of the sources one after the other, of which only the first `dataset_size` are there.

    weights:  how many times as often as by itself each source is seen in an epoch
    segments: [(number of rows, weight)] in the order of the rows, for the order of training
    """

    def __init__(self, sources, weights=None, dataset_size=None):
        self.sources, weights = list(sources), weights or [1.0] * len(sources)
        self.starts = list(accumulate(map(len, self.sources), initial=0))
        self.size = min(self.starts[-1], dataset_size or self.starts[-1])
        self.class_starts = list(accumulate((source.num_classes for source in self.sources), initial=0))
        self.num_classes = self.class_starts[-1]
        self.image_files = all(source.image_files for source in self.sources)
        left = [min(len(source), max(self.size - start, 0)) for source, start in zip(self.sources, self.starts)]
        texts = (source.texts_of_first(rows) for source, rows in zip(self.sources, left))
        self.text_starts = list(accumulate(texts, initial=0))
        self.segments = [(rows, weight) for rows, weight in zip(left, weights) if rows > 0]
        digests = [source.digest for source in self.sources]
        self.digest = hashlib.sha256(repr((digests, self.size)).encode()).hexdigest()

    def _place(self, row):
        """(number of the source, row in it)."""
        if not 0 <= row < self.size:
            raise IndexError(f"row {row} of {self.size}")
        number = bisect_right(self.starts, row) - 1
        return number, row - self.starts[number]

    def __len__(self):
        return self.size

    def name(self, row):
        number, row = self._place(row)
        return self.sources[number].name(row)

    def read(self, row):
        number, row = self._place(row)
        return self.sources[number].read(row)

    def image_id(self, row):
        number, row = self._place(row)
        return self.sources[number].image_id(row)

    def label(self, row):
        """Classes of different sources are different classes."""
        number, row = self._place(row)
        label = self.sources[number].label(row)
        return label if label < 0 else label + self.class_starts[number]

    def num_captions(self, row):
        number, row = self._place(row)
        return self.sources[number].num_captions(row)

    def text_number(self, row, index):
        number, row = self._place(row)
        return self.text_starts[number] + self.sources[number].text_number(row, index)

    def texts_of_first(self, rows):
        if rows == 0:
            return 0
        number, row = self._place(rows - 1)
        return self.text_starts[number] + self.sources[number].texts_of_first(row + 1)

    def text(self, number):
        if not 0 <= number < self.num_texts:
            raise IndexError(f"text {number} of {self.num_texts}")
        source = bisect_right(self.text_starts, number) - 1
        return self.sources[source].text(number - self.text_starts[source])
