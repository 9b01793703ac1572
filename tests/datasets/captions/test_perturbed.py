"""Captions and pictures out of order: what each flag permutes, that draws are kept, and that caches tell them apart."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.datasets.captions.perturbed import IMAGES, TEXTS, ShuffledCrop, shuffle_parts
from clip_vl.datasets.captions.source import CaptionSource
from clip_vl.datasets.images.decoding import decode_image
from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.engine.errors import UserError
from clip_vl.flags import perturbed as flags
from clip_vl.flags.perturbed import PerturbedFlags

CAPTIONS = ["A brown dog  quickly chases two white cats.", "The Cup", "one two three four five six seven"]


class Source(CaptionSource):
    digest = "d"

    def __len__(self):
        return 1

    def name(self, row):
        return "p.png"

    def read(self, row):
        buffer = io.BytesIO()
        pixels = np.random.default_rng(0).integers(0, 255, (13, 17, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "PNG")
        return buffer.getvalue()

    def num_captions(self, row):
        return len(CAPTIONS)

    def text_number(self, row, index):
        return index

    def texts_of_first(self, rows):
        return rows * len(CAPTIONS)

    def text(self, number):
        return CAPTIONS[number]


def opened(seed=0, **given):
    args = PerturbedFlags(**given)
    args.seed = seed
    return args.perturbed(Source())


def test_the_flags_offer_what_there_is():
    assert flags.TEXTS == tuple(TEXTS) and flags.IMAGES == tuple(IMAGES)


def test_nothing_asked_for_is_nothing_done():
    source = opened()
    assert type(source) is Source and source.changed == {"image": {}, "text": {}}


@pytest.mark.parametrize("kind", TEXTS)
def test_words_are_permuted_and_none_is_lost(kind):
    words = [token.text for token in load_tagger("bundled")(CAPTIONS[0]).tokens]
    words = CAPTIONS[0].split() if kind == "all_words" else words
    found = {opened(seed, perturb_text=kind, tagger="auto").text(0) for seed in range(8)}
    assert len(found) > 1 and all(sorted(text.split()) == sorted(words) for text in found)


def test_all_words_reach_every_place_and_split_at_spaces_alone():
    texts = [opened(seed, perturb_text="all_words").text(2).split() for seed in range(60)]
    assert all({text[place] for text in texts} == set(CAPTIONS[2].split()) for place in range(7))
    assert "cats." in opened(perturb_text="all_words").text(0).split()


def test_a_draw_is_that_of_the_seed_and_the_caption():
    one, two = opened(3, perturb_text="all_words"), opened(3, perturb_text="all_words")
    assert [one.text(n) for n in range(3)] == [two.text(n) for n in range(3)]
    assert one.text(2) != opened(4, perturb_text="all_words").text(2)


def test_captions_are_cleaned_after_they_were_shuffled():
    assert opened(clean_captions=True).text(0) == "a brown dog quickly chases two white cats"
    text = opened(perturb_text="all_words", clean_captions=True).text(0)
    assert sorted(text.split()) == sorted("a brown dog quickly chases two white cats".split())


@pytest.mark.parametrize("kind", IMAGES)
def test_parts_of_a_picture_are_permuted(kind):
    """Each part of one value: the shuffled picture has the same parts, and what does not divide stays."""
    rows, columns = IMAGES[kind]
    image = torch.full((3, 3 * rows + 1, 2 * columns + 1), 255, dtype=torch.uint8)
    parts = torch.arange(rows * columns, dtype=torch.uint8).view(rows, columns)
    image[:, : 3 * rows, : 2 * columns] = parts.repeat_interleave(3, 0).repeat_interleave(2, 1)
    seen = set()
    for seed in range(20):
        got = shuffle_parts(image, rows, columns, np.random.default_rng(seed))
        blocks = got[0, : 3 * rows, : 2 * columns].reshape(rows, 3, columns, 2)
        assert (blocks == blocks[:, :1, :, :1]).all() and (got[0] == got[2]).all()
        order = tuple(blocks[:, 0, :, 0].flatten().tolist())
        assert sorted(order) == list(range(rows * columns))
        assert (got[:, -1] == 255).all() and (got[:, :, -1] == 255).all()
        seen.add(order)
    assert len(seen) > 10


def test_the_view_of_a_dual_encoder_is_shuffled_and_not_only_its_picture():
    """As published, the parts are those of what the tower sees; other readers get the whole picture, shuffled alike."""
    source = opened(perturb_images="columns")

    def crop(data, rng=None, name=""):
        return decode_image(data)[:, :12, :12]

    crop.resolution = 12
    plain, view = source.for_crop(crop)
    assert type(plain) is Source and type(view) is ShuffledCrop and view.resolution == 12
    data = plain.read(0)
    got, original = view(data), crop(data)
    order = [next(j for j in range(4) if (got[:, :, 3 * i : 3 * i + 3] == original[:, :, 3 * j : 3 * j + 3]).all())
             for i in range(4)]  # fmt: skip
    assert sorted(order) == [0, 1, 2, 3]
    picture, whole = decode_image(source.read(0)), decode_image(data)
    assert all((picture[:, :, 4 * i : 4 * i + 4] == whole[:, :, 4 * j : 4 * j + 4]).all() for i, j in enumerate(order))
    assert Source().for_crop(crop)[1] is crop


def test_caches_tell_what_was_changed():
    """The digest is that of the files, so that features of the side that is not changed are found again."""
    words = opened(5, perturb_text="nouns_adjectives", tagger="bundled", perturb_images="rows", clean_captions=True)
    assert words.digest == "d" and words.changed["image"] == {"perturb_images": "rows", "seed": 5}
    assert words.changed["text"] == {"perturb_text": "nouns_adjectives", "seed": 5, "clean_captions": True,
                                     "tagger": load_tagger("bundled").name}  # fmt: skip


def test_a_tagger_that_nothing_asks_is_refused():
    with pytest.raises(UserError, match="--tagger bundled is for --perturb_text nouns_adjectives or all_but_"):
        opened(perturb_text="all_words", tagger="bundled")
