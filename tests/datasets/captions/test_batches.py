"""Batches of a dual encoder: the same for any worker count, what replaces damaged images, stored teacher features."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.datasets.captions.batches import MAX_REPLACEMENTS, AlignDataset
from clip_vl.datasets.captions.episodes import PlainBatches
from clip_vl.datasets.captions.source import CaptionSource
from clip_vl.datasets.images.crops import EvalCrop, TrainCrop
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.loader import build_loader, evaluation_loader, to_device
from clip_vl.engine.errors import DataError

CPU = torch.device("cpu")


class Pictures(CaptionSource):
    """Row i is a picture whose left half is of brightness i, with three captions; some are damaged or missing."""

    def __init__(self, count=40, damaged=(), missing=()):
        self.count, self.damaged, self.missing = count, set(damaged), set(missing)
        self.digest, self.num_classes = "x", count

    def __len__(self):
        return self.count

    def name(self, row):
        return f"picture {row}"

    def read(self, row):
        if row in self.missing:
            raise DamagedImage(self.name(row), "cannot be read: No such file")
        picture = np.zeros((20, 24, 3), dtype=np.uint8)
        picture[:, :12] = row
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        return buffer.getvalue()[: 40 if row in self.damaged else None]

    def label(self, row):
        return row

    def num_captions(self, row):
        return 3

    def text_number(self, row, index):
        return 3 * row + index

    def text(self, number):
        return f"caption {number % 3} of {number // 3}"


def tokenize(texts, rng=None):
    """Characters, padded to the longest of the batch; the last column is drawn."""
    length = max(map(len, texts))
    ids = [[*text.ljust(length).encode(), int(rng.integers(1000))] for text in texts]
    return {"input_ids": torch.tensor(ids)}


def dataset(source=None, **options):
    return AlignDataset(source or Pictures(), TrainCrop(16, "torchvision"), tokenize, 7, **options)


def batches_of(dataset, workers, count=6, size=8):
    args = SimpleNamespace(num_workers=workers)
    order = PlainBatches(len(dataset.source), size, seed=1).epoch(3)
    return list(build_loader(dataset, 3, order[:count], args, CPU))


def same(one, two):
    assert one.keys() == two.keys()
    for name, value in one.items():
        if isinstance(value, dict):
            same(value, two[name])
        else:
            assert torch.equal(value, two[name]) if torch.is_tensor(value) else value == two[name], name
    return True


def test_a_batch_has_what_it_says():
    batch = dataset(views=2)[(0, np.array([3, 9, 4]))]
    assert batch["images"].shape == batch["images_2"].shape == (3, 3, 16, 16)
    assert batch["images"].dtype == torch.uint8 and not torch.equal(batch["images"], batch["images_2"])
    assert batch["images"].is_contiguous(memory_format=torch.channels_last)
    assert batch["rows"].tolist() == batch["labels"].tolist() == [3, 9, 4]
    assert batch["image_ids"].dtype == torch.int64 and len(set(batch["image_ids"].tolist())) == 3
    assert bytes(batch["tokens"]["input_ids"][1, :-1].tolist()).decode() == batch["captions"][1]
    assert batch["captions"][1] in Pictures().captions(9)
    assert batch["damaged"] == []


def test_captions_and_views_are_drawn_anew_each_epoch():
    data = dataset()
    captions = {data[(epoch, [5])]["captions"][0] for epoch in range(30)}
    assert captions == set(Pictures().captions(5))
    assert not torch.equal(data[(0, [5])]["images"], data[(1, [5])]["images"])
    assert same(data[(2, [5, 6])], data[(2, [5, 6])])


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_are_the_same_for_any_number_of_workers(workers):
    data = dataset(Pictures(damaged=range(0, 40, 3), missing=[1, 2]), views=2)
    alone = batches_of(data, 0)
    assert all(same(*pair) for pair in zip(alone, batches_of(data, workers), strict=True))
    assert sum(len(batch["damaged"]) for batch in alone) >= 10


def test_a_damaged_image_is_named_and_its_place_taken_by_a_row_of_its_own_draw():
    data = dataset(Pictures(damaged=[3], missing=[9]))
    batch = data[(0, [3, 4, 9])]
    three, four, nine = batch["rows"].tolist()
    assert four == 4 and three not in (3, 9) and nine not in (3, 9)
    assert [name for name, _ in batch["damaged"]] == ["picture 3", "picture 9"]
    assert batch["damaged"][1][1] == "picture 9: cannot be read: No such file"
    assert batch["labels"].tolist() == batch["rows"].tolist() and batch["captions"][0].endswith(f"of {three}")
    assert torch.equal(data[(0, [three])]["images"][0], batch["images"][0])
    assert data[(0, [9, 3])]["rows"].tolist() == [nine, three]  # whoever else is in the batch
    others = {data[(epoch, [3])]["rows"].item() for epoch in range(20)}
    assert len(others) > 5


def test_a_replacement_that_is_damaged_is_replaced_and_in_the_end_it_is_a_sentence():
    batch = dataset(Pictures(damaged=set(range(40)) - {17}))[(0, [3])]
    assert batch["rows"].tolist() == [17] and len(batch["damaged"]) >= 1
    with pytest.raises(DataError, match=f"{MAX_REPLACEMENTS} images in a row cannot be read; the last: picture"):
        dataset(Pictures(damaged=range(40)))[(0, [3])]


def test_evaluation_replaces_nothing_and_ends_on_a_damaged_image():
    data = AlignDataset(Pictures(missing=[9]), EvalCrop(16), tokenize, 7, evaluation=True)
    batch = data[(0, [3, 9])]
    assert batch["rows"].tolist() == [3, 9] and batch["captions"] == ["caption 0 of 3", "caption 0 of 9"]
    assert same(data[(1, [3])], data[(0, [3])])
    args = SimpleNamespace(num_workers=0, tqdm=False)
    with pytest.raises(DataError, match="evaluation needs every image: picture 9: cannot be read"):
        list(evaluation_loader(data, [[3], [9]], CPU, args))


class Teacher:
    """Features of number n: (n, n + 1/2)."""

    width = 2

    def __init__(self, bad=()):
        self.bad = bad

    def __getitem__(self, number):
        return np.array([number, np.nan if number in self.bad else number + 0.5], dtype=np.float16)


def test_features_of_the_drawn_caption_stand_for_the_tokens():
    batch = dataset(teacher=Teacher())[(4, [3, 9])]
    assert "tokens" not in batch and batch["images"].shape == (2, 3, 16, 16)
    drawn = [3 * row + Pictures().captions(row).index(caption) for row, caption in zip((3, 9), batch["captions"])]
    assert batch["teacher_features"].tolist() == [[n, n + 0.5] for n in drawn]
    assert batch["captions"] == dataset()[(4, [3, 9])]["captions"]


def test_features_of_the_row_stand_for_the_images_which_are_not_read():
    source = Pictures(missing=range(40))
    batch = dataset(source, teacher=Teacher(bad=[9]), teacher_of="image")[(4, [3, 9])]
    three, other = batch["rows"].tolist()
    assert "images" not in batch and three == 3 and other != 9
    assert batch["teacher_features"].tolist() == [[n, n + 0.5] for n in (3, other)]
    assert batch["damaged"] == [("picture 9", "picture 9: has no features of the teacher: it could not be read")]
    assert batch["tokens"]["input_ids"].shape[0] == 2


def test_tokens_go_to_the_device_with_the_rest():
    moved = to_device(dataset()[(0, [1])], torch.device("meta"))
    assert moved["tokens"]["input_ids"].is_meta and moved["images"].is_meta
    assert moved["damaged"] == []
