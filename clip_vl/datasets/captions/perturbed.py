"""Captions with shuffled words and images with shuffled parts (ARO, arXiv:2210.01936, section 3).

A shuffling is drawn once for each caption and image, from the seed and the caption's number or the file's bytes; as in
the published code it may change nothing. Captions are shuffled raw and cleaned afterwards.
"""

import hashlib
import io

from clip_vl.datasets.captions.source import CaptionSource
from clip_vl.datasets.images.decoding import decode_image
from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.datasets.probes.order import clean, shuffled
from clip_vl.engine.random import numpy_rng

BY_TAGS = {"nouns_adjectives": "nouns and adjectives", "all_but_nouns_adjectives": "all but nouns and adjectives"}
TEXTS = BY_TAGS | {"within_trigrams": "within trigrams", "trigrams": "trigrams", "all_words": "all words"}
IMAGES = {"rows": (4, 1), "columns": (1, 4), "patches": (3, 3)}  # how many parts from top to bottom, left to right


class PerturbedSource(CaptionSource):
    """The captions of a source, shuffled, cleaned, or both, and its images with their parts shuffled.

    plain:   the source itself, whose digest it has: keys of caches name what is `changed` as well
    texts:   a key of TEXTS or None;  images: a key of IMAGES or None;  cleaned: whether captions are cleaned as by ARO
    tagger:  name of a tagger for BY_TAGS, as in `load_tagger`
    """

    def __init__(self, plain, texts=None, images=None, cleaned=False, seed=0, tagger="auto"):
        tagger = load_tagger(tagger) if texts in BY_TAGS else None
        self.plain, self.texts, self.images, self.cleaned, self.seed = plain, texts, images, cleaned, seed
        self.tagger, self.digest, self.num_classes = tagger, plain.digest, plain.num_classes
        words = {"perturb_text": texts, "seed": seed, "tagger": tagger and tagger.name} if texts else {}
        self.changed = {
            "text": words | ({"clean_captions": True} if cleaned else {}),
            "image": {"perturb_images": images, "seed": seed} if images else {},
        }

    def text(self, number):
        text = self.plain.text(number)
        if self.texts:
            rng = numpy_rng(self.seed, f"caption, {self.texts}", number)
            text = shuffled(text, self.tagger and self.tagger(text), TEXTS[self.texts], rng)
        return clean(text) if self.cleaned else text

    def read(self, row):
        """The bytes of the image file, or of a PNG of the shuffled image."""
        data = self.plain.read(row)
        if not self.images:
            return data
        return png(self.shuffled_image(decode_image(data, self.name(row)), data))

    def shuffled_image(self, image, data):
        """image: uint8 (3, H, W), the image or a crop of it;  data: the bytes of its file, which the draw goes by"""
        rng = numpy_rng(self.seed, f"picture, {self.images}", int.from_bytes(hashlib.sha256(data).digest()[:8]))
        return shuffle_parts(image, *IMAGES[self.images], rng)

    def for_crop(self, crop):
        """The image is cropped first and shuffled then, as published: a crop would cut shuffled parts away."""
        return (self.plain, ShuffledCrop(crop, self)) if self.images else (self, crop)

    def __len__(self):
        return len(self.plain)

    def name(self, row):
        return self.plain.name(row)

    def image_id(self, row):
        return self.plain.image_id(row)

    def label(self, row):
        return self.plain.label(row)

    def num_captions(self, row):
        return self.plain.num_captions(row)

    def text_number(self, row, index):
        return self.plain.text_number(row, index)

    def texts_of_first(self, rows):
        return self.plain.texts_of_first(rows)


class ShuffledCrop:
    """A crop whose result is shuffled."""

    def __init__(self, crop, source):
        self.crop, self.source, self.resolution = crop, source, crop.resolution

    def __call__(self, data, rng=None, name="image"):
        return self.source.shuffled_image(self.crop(data, rng, name), data)


def shuffle_parts(image, rows, columns, rng):
    """uint8 (3, H, W) with its rows x columns equal parts permuted; pixels that are left over at the right and at the
    bottom stay where they are.
    """
    h, w = image.shape[1] // rows, image.shape[2] // columns
    result = image.clone()
    for index, part in enumerate(rng.permutation(rows * columns).tolist()):
        (top, left), (from_top, from_left) = divmod(index, columns), divmod(part, columns)
        found = image[:, from_top * h : (from_top + 1) * h, from_left * w : (from_left + 1) * w]
        result[:, top * h : (top + 1) * h, left * w : (left + 1) * w] = found
    return result


def png(image):
    """uint8 (3, H, W) -> bytes of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
