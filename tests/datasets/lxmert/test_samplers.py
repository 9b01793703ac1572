"""Batches of like images: groups by hand, each item's share of an epoch, agreement between processes and epochs."""

import time

import numpy as np
import pytest

from clip_vl.datasets.images.canvas import is_portrait
from clip_vl.datasets.lxmert.samplers import EvalBatches, TrainBatches, aspect_groups
from clip_vl.engine.errors import DataError, UserError


def made_items(num_images=60, most=9, factor=2, seed=0):
    """(group, canvas, image) of each item: `num_images` images of random shapes, each with 1 to `most` items."""
    rng = np.random.default_rng(seed)
    heights, widths = rng.integers(200, 640, num_images), rng.integers(200, 640, num_images)
    image = rng.permutation(np.repeat(np.arange(num_images), rng.integers(1, most + 1, num_images)))
    canvas = np.array([not is_portrait(h, w) for h, w in zip(heights, widths)])
    return aspect_groups(heights, widths, factor)[image], canvas[image], image


# ---- groups ----


@pytest.mark.parametrize(
    "factor, height, width, group",
    [
        (0, 640, 480, 1),
        (0, 480, 640, 0),
        (0, 500, 500, 1),  # a tie goes up: squares are portraits
        (0, 639, 640, 0),
        (-1, 640, 480, 0),
        (-1, 100, 900, 0),
        (1, 100, 300, 0),  # edges 1/2, 1, 2
        (1, 100, 200, 1),
        (1, 100, 101, 1),
        (1, 100, 100, 2),
        (1, 199, 100, 2),
        (1, 200, 100, 3),
        (5, 480, 640, 3),  # 2^-0.415 lies between the edges 2^-0.6 and 2^-0.4
        (5, 640, 480, 8),
        (5, 100, 100, 6),
        (5, 100, 201, 0),
        (5, 900, 100, 11),
    ],
)
def test_groups_worked_out_by_hand(factor, height, width, group):
    assert aspect_groups([height], [width], factor).tolist() == [group]


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_a_positive_factor_gives_two_k_plus_two_groups_and_never_mixes_orientations(factor):
    heights, widths = np.meshgrid(np.arange(1, 200), np.arange(1, 200))
    groups = aspect_groups(heights.ravel(), widths.ravel(), factor)
    assert set(groups) == set(range(2 * factor + 2))
    assert ((groups > factor) == is_portrait(heights.ravel(), widths.ravel())).all()


# ---- training ----


@pytest.mark.parametrize("sentences", [1, 2, 4])
@pytest.mark.parametrize("batch_size, world_size", [(4, 1), (4, 3), (64, 2)])
def test_every_batch_has_one_canvas_and_every_item_comes_each_epoch(batch_size, world_size, sentences):
    group, canvas, image = made_items()
    for epoch in range(3):
        parts = [
            TrainBatches(
                group,
                canvas,
                batch_size,
                rank=rank,
                world_size=world_size,
                image_of_item=image,
                sentences_per_image=sentences,
            )
            for rank in range(world_size)
        ]
        batches = np.concatenate([part.epoch(epoch) for part in parts], axis=1)  # the global ones
        assert batches.shape == (len(parts[0]), batch_size * world_size) and batches.dtype == np.int64
        assert set(batches.ravel()) == set(range(len(image)))
        assert all(len(set(canvas[batch])) == 1 for batch in batches)


def test_a_batch_mixes_groups_only_where_leftovers_meet():
    group, canvas, _ = made_items(num_images=400)
    batches = TrainBatches(group, canvas, 8).epoch(0)
    mixed = sum(len(set(group[batch])) > 1 for batch in batches)
    full = sum(count // 8 for count in np.unique(group, return_counts=True)[1])
    assert mixed == len(batches) - full
    assert mixed <= 2 * 4  # two canvases, three groups each: at most three times seven leftovers in a canvas


def test_the_number_of_batches_follows_from_the_groups():
    """Groups of 10, 7 and 5 items on one canvas and 3 on the other, in batches of 4: 2 + 1 + 1 full ones, leftovers
    2 + 3 + 1 make two more, and the other canvas one."""
    group = np.repeat([0, 1, 2, 3], [10, 7, 5, 3])
    batches = TrainBatches(group, group == 3, 4)
    assert len(batches) == 2 + 1 + 1 + 2 + 1
    assert {batches.epoch(epoch).shape for epoch in range(20)} == {(7, 4)}


def test_repeats_are_few_and_spread_over_the_canvas():
    """103 items in batches of 10 need 7 repeats; over many epochs they reach nearly every item, and no batch twice."""
    batches = TrainBatches(np.arange(103) % 3, np.zeros(103, int), 10)
    repeated = set()
    for epoch in range(100):
        items, counts = np.unique(batches.epoch(epoch), return_counts=True)
        assert len(items) == 103 and counts.sum() == 110 and counts.max() == 2
        repeated |= set(items[counts > 1])
        assert all(len(set(batch)) == 10 for batch in batches.epoch(epoch))
    assert len(repeated) > 95


def test_fewer_items_than_a_batch_are_repeated_evenly():
    batch = TrainBatches([0, 0, 0], [0, 0, 0], 8).epoch(0)
    assert batch.shape == (1, 8)
    assert sorted(np.bincount(batch[0])) == [2, 3, 3]


def test_an_image_one_pixel_wider_than_high_is_in_a_landscape_batch():
    heights, widths = np.array([639, 480, 500, 640]), np.array([640, 640, 500, 480])
    canvas = ~is_portrait(heights, widths)
    batches = TrainBatches(aspect_groups(heights, widths, 0), canvas, 2).epoch(0)
    assert sorted(map(sorted, batches.tolist())) == [[0, 1], [2, 3]]


def test_epochs_differ_and_a_seed_repeats_them():
    group, canvas, _ = made_items()
    first = TrainBatches(group, canvas, 8, seed=3)
    assert np.array_equal(first.epoch(5), TrainBatches(group, canvas, 8, seed=3).epoch(5))
    assert not np.array_equal(first.epoch(5), first.epoch(6))
    assert not np.array_equal(first.epoch(5), TrainBatches(group, canvas, 8, seed=4).epoch(5))


def test_groups_come_in_a_random_order():
    group = np.repeat([0, 1], 400)
    order = group[TrainBatches(group, group, 8).epoch(0)[:, 0]]
    assert 20 < np.abs(np.diff(order)).sum() < 80  # sorted it would be 1


@pytest.mark.parametrize("sentences", [1, 2])
def test_one_process_sees_the_batches_of_two_side_by_side(sentences):
    group, canvas, image = made_items()
    options = {"image_of_item": image, "sentences_per_image": sentences}
    alone = TrainBatches(group, canvas, 12, **options).epoch(1)
    for world_size in (2, 3):
        size = 12 // world_size
        parts = [TrainBatches(group, canvas, size, rank=r, world_size=world_size, **options) for r in range(world_size)]
        assert np.array_equal(np.concatenate([part.epoch(1) for part in parts], axis=1), alone)


@pytest.mark.parametrize("sentences", [2, 3, 8])
def test_sentences_of_an_image_share_a_batch(sentences):
    group, canvas, image = made_items(num_images=40, most=12)
    batches = TrainBatches(
        group, canvas, 4 * sentences, rank=1, world_size=2, image_of_item=image, sentences_per_image=sentences
    )
    counts = np.bincount(image)
    for batch in batches.epoch(0):
        for chunk in batch.reshape(4, sentences):
            (owner,) = set(image[chunk])
            assert len(set(chunk)) == min(sentences, counts[owner])  # repeats only where the image has too few


def test_twenty_five_sentences_make_four_chunks_of_eight():
    image = np.repeat([0, 1], [25, 7])
    batches = TrainBatches(np.zeros(32, int), np.zeros(32, int), 8, image_of_item=image, sentences_per_image=8)
    assert len(batches) == 4 + 1
    first, second = batches.epoch(0), batches.epoch(1)
    assert {tuple(sorted(chunk)) for chunk in first} != {tuple(sorted(chunk)) for chunk in second}  # cut anew


def test_canvas_numbers_may_have_gaps():
    canvas = np.array([4, 0, 4, 0, 0])
    batches = TrainBatches(np.zeros(5, int), canvas, 2).epoch(0)
    assert len(batches) == 3 and [0, 2] in map(sorted, batches.tolist())


def test_image_numbers_may_have_gaps_and_any_order():
    image = np.array([900, 17, 900, 5, 17, 900])
    batches = TrainBatches(np.zeros(6, int), np.zeros(6, int), 2, image_of_item=image, sentences_per_image=2).epoch(0)
    assert set(batches.ravel()) == set(range(6))
    assert all(len(set(image[batch])) == 1 for batch in batches)


def test_a_batch_that_cannot_hold_whole_images_is_refused():
    with pytest.raises(UserError, match="batch_size 10 is not a multiple of --sentences_per_image 4"):
        TrainBatches([0], [0], 10, image_of_item=[0], sentences_per_image=4)


def test_nothing_to_train_on_is_an_error():
    with pytest.raises(DataError, match="no item"):
        TrainBatches([], [], 4)


@pytest.mark.parametrize("sentences", [1, 4])
def test_a_million_items_take_seconds(sentences):
    rng = np.random.default_rng(0)
    image = np.sort(rng.integers(0, 20_000, 1_000_000)).astype(np.int32)
    group = rng.integers(0, 12, 20_000).astype(np.int16)[image]
    start = time.perf_counter()
    batches = TrainBatches(group, group >= 6, 32, world_size=8, image_of_item=image, sentences_per_image=sentences)
    assert batches.epoch(0).shape[0] == len(batches)
    assert time.perf_counter() - start < 3  # 0.1 and 0.4 s on an idle core


# ---- evaluation ----


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_batches_do_not_depend_on_the_number_of_processes(world_size):
    group, canvas, image = made_items()
    alone = list(EvalBatches(canvas, 8, group_of_item=group, image_of_item=image))
    shares = [
        list(EvalBatches(canvas, 8, rank=rank, world_size=world_size, group_of_item=group, image_of_item=image))
        for rank in range(world_size)
    ]
    dealt = [shares[step % world_size][step // world_size] for step in range(len(alone))]
    assert all(np.array_equal(a, b) for a, b in zip(alone, dealt, strict=True))
    assert sum(map(len, shares)) == len(alone)
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_evaluation_shows_each_item_exactly_once_in_batches_of_one_canvas():
    group, canvas, image = made_items()
    batches = EvalBatches(canvas, 8, group_of_item=group, image_of_item=image)
    assert sorted(np.concatenate(list(batches))) == list(range(len(image)))
    assert all(len(set(canvas[batch])) == 1 and len(batch) <= 8 for batch in batches)
    assert sum(len(batch) < 8 for batch in batches) <= 2  # one short batch for each canvas
    assert len(batches) == len(list(batches))


def test_evaluation_keeps_the_items_of_an_image_together():
    image = np.random.default_rng(0).permutation(np.repeat(np.arange(30), 4))
    batches = EvalBatches(np.zeros(120, int), 8, image_of_item=image)
    assert all(len(set(image[batch])) == 2 for batch in batches)


def test_evaluation_of_nothing_has_no_batches():
    assert list(EvalBatches(np.zeros(0, int), 8)) == []
