"""Retrieval protocols by name: which images, which captions, and how many images at a time."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from clip_vl.datasets.captions.source import NumberedPairs
from clip_vl.engine.errors import DataError, UserError


class Protocol(NamedTuple):
    """spec: for `open_sources`;  images, texts: how many there must be, 0 for any;  fold: images of a fold, 0: all."""

    name: str
    spec: str
    images: int = 0
    texts: int = 0
    fold: int = 0


PROTOCOLS = (
    Protocol("coco-karpathy-5k", "mscoco_captions@test", 5000, 25010),
    Protocol("coco-karpathy-1k", "mscoco_captions@test", 5000, 25010, fold=1000),  # the mean over the five folds
    Protocol("coco2017-val", "official/captions_val2017.json", 5000),
    Protocol("flickr30k-karpathy", "karpathy/dataset_flickr30k.json@test", 1000, 5000),
)


def find_protocol(spec, fold=0):
    """The protocol of a published name, or one for any data that `open_sources` reads."""
    named = next((protocol for protocol in PROTOCOLS if protocol.name == spec), None)
    if fold < 0:
        raise UserError(f"--fold_size {fold} must be at least 0; 0 evaluates all images at once")
    if named and fold:
        raise UserError(f"--test {spec} has a fold size of its own: leave out --fold_size")
    return named or Protocol(f"{spec}, folds of {fold:,} images" if fold else spec, spec, fold=fold)


class RetrievalPairs(NumberedPairs):
    """The pairs of a protocol: each image once, with all of its captions or the first few.

    captions_per_image: how many captions of each image are kept [all]
    is_whole: whether the source should have as many images and captions as the protocol
    folds:    [(first image, one past the last)]
    """

    def __init__(self, source, protocol, captions_per_image=None, is_whole=True):
        super().__init__(source)
        if protocol.images and is_whole:
            _check(protocol, len(self.rows), len(self.numbers))
        if captions_per_image:
            kept = _index_in_image(self.image_of_text) < captions_per_image
            self.numbers, self.image_of_text = self.numbers[kept], self.image_of_text[kept]
        fold, N = protocol.fold or len(self.rows), len(self.rows)
        if N % fold:
            raise UserError(f"{protocol.name}: {N:,} images do not make whole folds of {fold:,}")
        self.folds = [(start, start + fold) for start in range(0, N, fold)]

    def texts_of(self, first, last):
        """(k,) positions in `numbers` of the texts of these images."""
        return np.flatnonzero((self.image_of_text >= first) & (self.image_of_text < last))

    def names(self):
        """(ids of the images, ids of the texts): file names, or whole paths where two names are equal; texts with #n.

        A path that occurs several times, as a key of a shard may, is numbered from its second occurrence on.
        """
        paths = [self.source.name(int(row)) for row in self.rows]
        short = [path.rpartition("/")[2] for path in paths]
        images = short if len(set(short)) == len(short) else _distinct(paths)
        indices = _index_in_image(self.image_of_text)
        return images, [f"{images[i]}#{n}" for i, n in zip(self.image_of_text, indices)]


def _distinct(names):
    seen = Counter()
    for index, name in enumerate(names):
        seen[name] += 1
        names[index] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _check(protocol, images, texts):
    if images != protocol.images or texts != (protocol.texts or texts):
        wanted = f"{protocol.images:,} images" + (f" and {protocol.texts:,} captions" if protocol.texts else "")
        raise DataError(f"{protocol.name} has {wanted}, {protocol.spec} has {images:,} and {texts:,}: "
                        "name the file itself to evaluate on it, or pass --dataset_size for a part")  # fmt: skip


def _index_in_image(image_of_text):
    """(M,) how many earlier texts describe the same image."""
    order = np.argsort(image_of_text, kind="stable")
    owner, indices = image_of_text[order], np.empty(len(order), np.int64)
    indices[order] = np.arange(len(order)) - np.searchsorted(owner, owner)
    return indices
