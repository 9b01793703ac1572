"""Captions and pictures out of order (ARO, arXiv:2210.01936, section 3): retrieval that survives this needs no order.

A shuffling is drawn once for each caption and picture, by the seed and the caption's number or the file's bytes, and as
published it may happen to change nothing. Captions are shuffled raw and cleaned afterwards.
"""

import hashlib
import io

from clip_vl.datasets.captions.source import CaptionSource
from clip_vl.datasets.images.decoding import decode_image
from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.datasets.probes.order import clean, shuffled
from clip_vl.engine.errors import UserError
from clip_vl.engine.random import numpy_rng
from clip_vl.flags.perturbed import BY_TAGS, IMAGES, TEXTS


def perturbed(source, args):
    """The source as the flags of `PerturbedFlags` ask for it; itself where they ask for nothing."""
    tagger = None
    if args.perturb_text in BY_TAGS:
        tagger = load_tagger(args.tagger)
    elif args.tagger != "auto":
        raise UserError(f"--tagger {args.tagger} is for --perturb_text {' or '.join(BY_TAGS)}")
    if not (args.perturb_text or args.perturb_images or args.clean_captions):
        return source
    return PerturbedSource(source, args.perturb_text, args.perturb_images, args.clean_captions, args.seed, tagger)


class PerturbedSource(CaptionSource):
    """The captions of a source, shuffled, cleaned, or both, and its pictures with their parts shuffled.

    plain: the source itself, whose digest it has: keys of caches name what is `changed` as well
    """

    def __init__(self, plain, texts, images, cleaned, seed, tagger=None):
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
        """The bytes of the image file, or of a PNG of the shuffled picture."""
        data = self.plain.read(row)
        if not self.images:
            return data
        return png(self.shuffled_image(decode_image(data, self.name(row)), data))

    def shuffled_image(self, image, data):
        """image: uint8 (3, H, W), the picture or a view of it;  data: the bytes of its file, which the draw goes by"""
        rng = numpy_rng(self.seed, f"picture, {self.images}", int.from_bytes(hashlib.sha256(data).digest()[:8]))
        return shuffle_parts(image, *IMAGES[self.images], rng)

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
    """A crop whose view is shuffled, as published: of the picture itself the crop would cut parts away."""

    def __init__(self, crop, source):
        self.crop, self.source, self.resolution = crop, source, crop.resolution

    def __call__(self, data, rng=None, name="image"):
        return self.source.shuffled_image(self.crop(data, rng, name), data)


def views_of(source, crop):
    """(source, crop) of what a dual encoder sees, for `ImagesOf`."""
    if isinstance(source, PerturbedSource) and source.images:
        return source.plain, ShuffledCrop(crop, source)
    return source, crop


def shuffle_parts(image, rows, columns, rng):
    """uint8 (3, H, W) with its rows x columns equal parts permuted; pixels that are left over at the right and at the
    bottom stay in their place.
    """
    h, w = image.shape[1] // rows, image.shape[2] // columns
    result = image.clone()
    for place, part in enumerate(rng.permutation(rows * columns).tolist()):
        (top, left), (from_top, from_left) = divmod(place, columns), divmod(part, columns)
        found = image[:, from_top * h : (from_top + 1) * h, from_left * w : (from_left + 1) * w]
        result[:, top * h : (top + 1) * h, left * w : (left + 1) * w] = found
    return result


def png(image):
    """uint8 (3, H, W) -> bytes of a PNG."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(buffer, "PNG")
    return buffer.getvalue()
