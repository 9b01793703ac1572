"""Images and texts by themselves: each once, dealt out to the processes, and none passed over in silence."""

import dataclasses

import numpy as np
import pytest
import torch

from clip_vl.datasets.captions.source import NumberedPairs
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.encoding.encode import Encoder, ImagesOf, TextsOf, shares
from clip_vl.encoding.held_out import HeldOutPairs
from clip_vl.engine.errors import DataError


class Source:
    """Five rows of three images; row r has r % 2 + 1 captions; image 2 cannot be read."""

    image_ids = [0, 0, 1, 2, 1]

    def __len__(self):
        return 5

    def image_id(self, row):
        return self.image_ids[row]

    def num_captions(self, row):
        return row % 2 + 1

    def text_number(self, row, index):
        return 10 * row + index

    def text(self, number):
        return f"text {number}"

    def name(self, row):
        return f"{self.image_ids[row]}.jpg"

    def read(self, row):
        if self.image_ids[row] == 2:
            raise DamagedImage(self.name(row), "cannot be read")
        return bytes([self.image_ids[row]])


def crop(data, rng, name):
    return torch.full((3, 4, 4), data[0] + 7, dtype=torch.uint8)


crop.resolution = 4
ENCODER = Encoder(torch.device("cpu"), batch_size=2)


def held_out(**teacher):
    def tokenizer(texts):
        return {"ids": torch.tensor([int(text[5:]) for text in texts])}

    return HeldOutPairs(Source(), crop, tokenizer, ENCODER, teacher)


class Model(torch.nn.Module):
    """Features of an image are the values that it has, those of a text its number."""

    def encode_image(self, images):
        return images.flatten(1).float()[:, :2]

    def encode_text(self, tokens):
        return tokens["ids"][:, None].float()


@pytest.mark.parametrize("count, world", [(7, 1), (7, 2), (3, 4), (0, 2)])
def test_shares_deal_every_number_to_one_process(count, world):
    parts = [shares(np.arange(count), 2, rank, world) for rank in range(world)]
    assert sorted(number for part in parts for batch in part for number in batch) == list(range(count))


def test_an_image_of_several_rows_is_there_once_with_all_of_its_texts():
    pairs = NumberedPairs(Source())
    assert pairs.rows.tolist() == [0, 2, 3]
    assert pairs.numbers.tolist() == [0, 10, 11, 20, 30, 31, 40]
    assert pairs.image_of_text.tolist() == [0, 0, 0, 1, 2, 2, 1]


def test_held_out_pairs_are_encoded_in_their_order(monkeypatch):
    monkeypatch.setattr(Source, "image_ids", [0, 0, 1, 3, 1])
    images, texts = held_out().encode(Model())
    assert texts.tolist() == [[0], [10], [11], [20], [30], [31], [40]] and images[:, 0].tolist() == [7, 8, 10]


def test_kept_features_are_those_of_the_items_that_are_asked_for(tmp_path):
    """Other items, another model, precision or source are encoded anew; the same ones are found."""
    encoder, seen = dataclasses.replace(ENCODER, cache_root=tmp_path), []

    def encode(batch):
        seen.append(len(batch["images"]))
        return batch["images"].flatten(1).float()[:, :1]

    def features(rows, encoder=encoder, **key):
        key = {"source": "s", "model": "m"} | key
        return encoder.cached(ImagesOf(Source(), crop), np.array(rows), encode, **key).values[:, 0].tolist()

    assert features([2, 0, 4]) == [8, 7, 8] and seen == [2, 1]
    assert features([2, 0, 4]) == [8, 7, 8] and seen == [2, 1]
    half = dataclasses.replace(encoder, dtype=torch.bfloat16)
    for rows, more in (([0, 2, 4], {}), ([2, 0, 4], {"model": "n"}), ([2, 0, 4], {"encoder": half}),
                       ([2, 0, 4], {"source": "t"})):  # fmt: skip
        before = len(seen)
        features(rows, **more)
        assert len(seen) > before
    with pytest.raises(DataError, match=r"2\.jpg"):
        features([3])
    key = {"source": "s", "model": "m", "skip_damaged": True}
    damaged = encoder.cached(ImagesOf(Source(), crop), [3, 0], encode, **key)
    assert np.isnan(damaged[0]).all() and damaged[1] == 7


def test_a_damaged_image_is_black_and_named_and_ends_an_evaluation():
    batch = ImagesOf(Source(), crop)[(0, [2, 3])]
    assert batch["images"][0].unique().tolist() == [8] and not batch["images"][1].any()
    assert batch["damaged"][0][0] == 3 and "2.jpg" in batch["damaged"][0][1]
    with pytest.raises(DataError, match=r"2\.jpg"):
        held_out().encode(Model())


def test_cached_features_stand_for_a_tower_and_a_gap_in_them_ends_an_evaluation():
    cache = np.arange(10, dtype=np.float16).reshape(5, 2)
    found, _ = held_out(image=cache).encode(Model())
    assert found.tolist() == [[0, 1], [4, 5], [6, 7]] and found.dtype == torch.float32
    cache[3] = np.nan  # what could not be read when the tower encoded it
    with pytest.raises(DataError, match=r"2\.jpg"):
        held_out(image=cache).encode(Model())


def test_texts_come_by_their_numbers():
    assert TextsOf(Source(), lambda texts: texts)[(0, [31, 0])] == {"tokens": ["text 31", "text 0"]}
