"""Pairs of an image and a text, scored one by one by a fused encoder, by all processes, in parts that are kept."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clip_vl.datasets.loader import to_device
from clip_vl.datasets.lxmert.canvas_pairs import PairList, by_image, picture_on_canvas, score_texts
from clip_vl.datasets.lxmert.wordpiece import pad_tokens
from clip_vl.encoding.cache import cached_features
from clip_vl.encoding.encode import stop_if_asked

BLOCK = 4096  # pairs that a killed process can lose


@dataclass(frozen=True)
class Matcher:
    """A fused encoder with what it needs to read an image and a text.

    scorer: as in `score_texts`;  tokenizer: BERT's;  sides: (shorter, longer) side of the canvas at most
    """

    scorer: Any
    tokenizer: Any
    max_length: int
    sides: tuple

    def tokenize(self, texts):
        """A list of ids for each text."""
        return self.tokenizer.encode(texts, self.max_length)

    def pad(self, texts):
        """{input_ids, attention_mask}, (B, L) each."""
        return pad_tokens(self.tokenize(texts))

    def inputs(self, data, name, text, device):
        """(images uint8 (1, 3, H, W), image_boxes (1, 4), tokens) of the bytes of an image file and a text."""
        images, boxes = picture_on_canvas(data, name, *self.sides)
        return images.to(device), boxes.to(device), to_device(self.pad([text]), device)


def score_pairs(keys, pairs, matcher, encoder, model, stop=None):
    """(P,) log-odds of image-text pairs, kept; the visual tower sees an image once in a block.

    keys:  of a `PairList`;  pairs: `RetrievalPairs`
    model: text that names all that scores depend on besides pairs, tokenizer and precision;  stop: as of `Encoder`
    """
    listed = PairList(len(pairs.numbers), len(pairs.rows), keys)
    texts = matcher.tokenize([pairs.source.text(int(number)) for number in pairs.numbers])

    def score_block(numbers):
        images, places = listed[numbers]
        scores = np.empty(len(numbers), np.float32)
        for image, mine in by_image(images):
            stop_if_asked(stop)
            row = int(pairs.rows[image])
            canvas = picture_on_canvas(pairs.source.read(row), pairs.source.name(row), *matcher.sides)
            of_image = [texts[place] for place in places[mine]]
            with encoder.autocast():
                scores[mine] = score_texts(matcher.scorer, canvas, of_image, encoder.batch_size, encoder.device)
        return scores[:, None]

    chosen = [None if each is None else hashlib.sha256(np.ascontiguousarray(each, np.int64)).hexdigest()
              for each in (keys, pairs.rows, pairs.numbers)]  # fmt: skip
    described = f"{model} pairs {chosen} {matcher.tokenizer.digest} {matcher.max_length} {matcher.sides} "
    described += f"{encoder.dtype} {encoder.batch_size} {pairs.source.changed}"
    root = Path(encoder.cache_root)
    root.mkdir(parents=True, exist_ok=True)
    found = cached_features(
        pairs.source.digest, described, listed.count, score_block, root, dtype="float32", block=BLOCK
    )
    return found.values[:, 0]
