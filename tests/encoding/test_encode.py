"""Images and texts by themselves: each once, dealt out to the processes, and none passed over in silence."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.encoding.encode import HeldOutPairs, ImagesOf, TextsOf, shares
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
ARGS = SimpleNamespace(batch_size=2, num_workers=0, tqdm=False)
CPU = torch.device("cpu")


def held_out(**teacher):
    return HeldOutPairs(Source(), crop, lambda texts: {"ids": torch.tensor([int(t[5:]) for t in texts])}, ARGS, teacher)


@pytest.mark.parametrize("count, world", [(7, 1), (7, 2), (3, 4), (0, 2)])
def test_shares_deal_every_number_to_one_process(count, world):
    parts = [shares(np.arange(count), 2, rank, world) for rank in range(world)]
    assert sorted(number for part in parts for batch in part for number in batch) == list(range(count))


def test_an_image_of_several_rows_is_there_once_with_all_of_its_texts():
    pairs = held_out()
    assert pairs.rows.tolist() == [0, 2, 3]
    assert pairs.numbers.tolist() == [0, 10, 11, 20, 30, 31, 40]
    assert pairs.image_of_text.tolist() == [0, 0, 0, 1, 2, 2, 1]
    batches = [(places.tolist(), batch["tokens"]["ids"].tolist()) for places, batch in pairs.text_batches(CPU)]
    assert batches[0] == ([0, 1], [0, 10]) and batches[-1] == ([6], [40])


def test_a_damaged_image_is_black_and_named_and_ends_an_evaluation():
    batch = ImagesOf(Source(), crop)[(0, [2, 3])]
    assert batch["images"][0].unique().tolist() == [8] and not batch["images"][1].any()
    assert batch["damaged"][0][0] == 3 and "2.jpg" in batch["damaged"][0][1]
    with pytest.raises(DataError, match=r"2\.jpg"):
        list(held_out().image_batches(CPU))


def test_cached_features_stand_for_a_tower_and_a_gap_in_them_ends_an_evaluation():
    cache = np.arange(10, dtype=np.float16).reshape(5, 2)
    found = torch.cat([batch["images"] for _, batch in held_out(image=cache).image_batches(CPU)])
    assert found.tolist() == [[0, 1], [4, 5], [6, 7]] and found.dtype == torch.float32
    cache[3] = np.nan  # what could not be read when the tower encoded it
    with pytest.raises(DataError, match=r"2\.jpg"):
        list(held_out(image=cache).image_batches(CPU))


def test_texts_come_by_their_numbers():
    assert TextsOf(Source(), lambda texts: texts)[(0, [31, 0])] == {"tokens": ["text 31", "text 0"]}
