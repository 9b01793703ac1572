"""Retrieval protocols by their names: which images, which captions, and how many at a time."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from clip_vl.encoding.encode import HeldOutPairs
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
    """The protocol of a published name, or of any data that `open_sources` reads, whose name is then what they are."""
    named = next((protocol for protocol in PROTOCOLS if protocol.name == spec), None)
    if fold < 0:
        raise UserError(f"--fold_size {fold} is a number of images; 0 takes all of them at once")
    if named and fold:
        raise UserError(f"--test {spec} says itself how many images it takes at a time: leave out --fold_size")
    return named or Protocol(f"{spec}, folds of {fold:,} images" if fold else spec, spec, fold=fold)


class RetrievalPairs:
    """The pairs of a protocol: each image once and all of its captions, or the first few of each.

    rows: (N,) of the source;  numbers: (M,) of its texts;  image_of_text: (M,)
    folds: [(first image, one past the last)]
    """

    def __init__(self, source, protocol, args):
        held_out = HeldOutPairs(source, None, None, args)
        self.source, self.rows, self.numbers = source, held_out.rows, held_out.numbers
        self.image_of_text = held_out.image_of_text
        if protocol.images and args.dataset_size is None:
            _check(protocol, len(self.rows), len(self.numbers))
        if args.captions_per_image:
            kept = _place_in_image(self.image_of_text) < args.captions_per_image
            self.numbers, self.image_of_text = self.numbers[kept], self.image_of_text[kept]
        fold, N = protocol.fold or len(self.rows), len(self.rows)
        if N % fold:
            raise UserError(f"{protocol.name}: {N:,} images do not make whole folds of {fold:,}")
        self.folds = [(start, start + fold) for start in range(0, N, fold)]

    def texts_of(self, first, last):
        """(k,) places in `numbers` of the texts of these images."""
        return np.flatnonzero((self.image_of_text >= first) & (self.image_of_text < last))

    def names(self):
        """(ids of the images, ids of the texts): file names, whole paths where those are not distinct, and #n.

        A path that is there several times, as a key of a shard may be, is numbered from its second time on.
        """
        paths = [self.source.name(int(row)) for row in self.rows]
        short = [path.rpartition("/")[2] for path in paths]
        images = short if len(set(short)) == len(short) else _distinct(paths)
        places = _place_in_image(self.image_of_text)
        return images, [f"{images[i]}#{n}" for i, n in zip(self.image_of_text, places)]


def _distinct(names):
    seen = Counter()
    for place, name in enumerate(names):
        seen[name] += 1
        names[place] = name if seen[name] == 1 else f"{name} ({seen[name]})"
    return names


def _check(protocol, images, texts):
    if images != protocol.images or texts != (protocol.texts or texts):
        wanted = f"{protocol.images:,} images" + (f" and {protocol.texts:,} captions" if protocol.texts else "")
        raise DataError(f"{protocol.name} has {wanted}, {protocol.spec} has {images:,} and {texts:,}: "
                        "name the file itself to measure on it, or --dataset_size for a part")  # fmt: skip


def _place_in_image(image_of_text):
    """(M,) how many earlier texts describe the same image."""
    order = np.argsort(image_of_text, kind="stable")
    owner, places = image_of_text[order], np.empty(len(order), np.int64)
    starts = np.searchsorted(owner, owner)
    places[order] = np.arange(len(order)) - starts
    return places
