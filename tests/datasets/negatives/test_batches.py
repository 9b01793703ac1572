"""NegCLIP's batches on tables so small that every draw is known, and what becomes of images that cannot be read."""

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.datasets.images.decoding import decode_image
from clip_vl.datasets.negatives.batches import NegativePairs, NegativeTable, usable_rows
from clip_vl.datasets.negatives.table import NegativeRow
from clip_vl.engine.errors import DataError

RING = [NegativeRow(f"t{i}", f"{i}.png", (f"n{i}",), ((i + 1) % 4,)) for i in range(4)]  # i's neighbour is i + 1


@pytest.fixture
def folder(tmp_path):
    """Pictures 0.png to 9.png, of which each pixel is the number of the picture."""
    for number in range(10):
        Image.fromarray(np.full((2, 2, 3), number, np.uint8)).save(tmp_path / f"{number}.png")
    return tmp_path


def crop(data, rng, name):
    return decode_image(data, name)


def pairs_of(rows, folder, seed=0, **kinds):
    return NegativePairs(NegativeTable(rows, folder), crop, lambda texts, rng: texts, seed, **kinds)


def pictures(batch):
    return batch["images"][:, 0, 0, 0].tolist()


def test_a_batch_solved_by_hand(folder):
    """Anchors 2 and 0: images [I; I_hard], texts [T; T_hard; N; N_hard]; text i of the first 2B is of image i."""
    batch = pairs_of(RING, folder)[0, np.array([2, 0])]
    assert pictures(batch) == batch["image_ids"].tolist() == [2, 0, 3, 1]
    assert batch["tokens"] == ["t2", "t0", "t3", "t1", "n2", "n0", "n3", "n1"]
    assert batch["rows"].tolist() == [2, 0] and batch["damaged"] == []


def test_without_negative_captions_or_neighbours_their_places_are_gone(folder):
    rows = np.array([2, 0])
    batch = pairs_of(RING, folder, texts=False)[0, rows]
    assert batch["tokens"] == ["t2", "t0", "t3", "t1"] and pictures(batch) == [2, 0, 3, 1]
    batch = pairs_of(RING, folder, images=False)[0, rows]
    assert batch["tokens"] == ["t2", "t0", "n2", "n0"] and pictures(batch) == [2, 0]


def test_the_negative_of_a_neighbour_is_its_own_whichever_neighbour_it_is(folder):
    """A published collator took the hard caption's negatives from neighbour 0, whichever had been drawn."""
    near = [tuple(j for j in range(4) if j != i) for i in range(4)]
    rows = [NegativeRow(f"t{i}", f"{i}.png", (f"n{i}a", f"n{i}b"), near[i]) for i in range(4)]
    seen = set()
    for epoch in range(40):
        _, hard, _, negative = pairs_of(rows, folder)[epoch, np.array([0])]["tokens"]
        assert negative[:2] == f"n{hard[1:]}"
        seen.add((hard, negative))
    assert len(seen) == 6  # each of three neighbours with each of its two negatives


def test_draws_hang_on_the_row_and_not_on_its_batch(folder):
    """So that any number of processes and any batch size see the same epoch."""
    rows = [NegativeRow(f"t{i}", f"{i}.png", ("x", "y", "z"), tuple(j for j in range(8) if j != i)) for i in range(8)]
    pairs = pairs_of(rows, folder)
    together = pairs[3, np.arange(8)]["tokens"]
    alone = [pairs[3, np.array([row])]["tokens"] for row in range(8)]
    assert [together[start : start + 8] for start in range(0, 32, 8)] == [list(texts) for texts in zip(*alone)]


def test_another_anchor_stands_in_for_one_whose_neighbour_is_damaged(folder):
    (folder / "3.png").write_bytes(b"no picture")
    batch = pairs_of(RING, folder)[0, np.array([2, 0])]
    ids = batch["image_ids"].tolist()
    assert len(ids) == 4 and ids[0] in (0, 1) and ids[2] == ids[0] + 1 and ids[1] == 0
    assert batch["rows"].tolist() == ids[:2] and "3.png" in batch["damaged"][0][1]
    assert batch["tokens"] == [*(f"t{i}" for i in ids), *(f"n{i}" for i in ids)]


def test_when_no_anchor_can_be_read_training_ends(folder):
    for path in folder.glob("*.png"):
        path.write_bytes(b"no picture")
    with pytest.raises(DataError, match="100 anchors in a row cannot be read"):
        pairs_of(RING, folder)[0, np.array([0])]


def test_an_anchor_needs_negatives_of_its_own_and_of_all_its_neighbours():
    rows = [
        NegativeRow("t0", "0.png", ("n",), (1, 2)),
        NegativeRow("t1", "1.png", ("n",), (0,)),
        NegativeRow("t2", "2.png", (), (0, 1)),  # speaks no negative: neither it nor row 0, which it is near to
        NegativeRow("t3", "3.png", ("n",), ()),  # has no neighbour
    ]
    found = usable_rows(NegativeTable(rows, "."))
    assert found.tolist() == [1] and found.dtype == np.int64 and torch.from_numpy(found).dtype == torch.int64
