"""The order of training: the same global batches for any number of processes, and the frequencies of its rows."""

import numpy as np
import pytest

from clip_vl.datasets.captions.episodes import EpisodeBatches, PlainBatches, training_order
from clip_vl.engine.errors import UserError

SEGMENTS = [(100, 1.0), (50, 2.5), (200, 0.25)]


def counts(order, epoch=0, size=350):
    return np.bincount(order.epoch(epoch).ravel(), minlength=size)


@pytest.mark.parametrize("kind", ["plain", "replacement", "permutation"])
def test_global_batches_are_the_same_for_any_number_of_processes(kind):
    def order(batch_size, **where):
        if kind == "plain":
            return PlainBatches(350, batch_size, seed=3, segments=SEGMENTS, **where)
        return EpisodeBatches(350, batch_size, seed=3, episode_size=500, sampling=kind, segments=SEGMENTS, **where)

    alone = order(12).epoch(5)
    for world_size in (2, 3, 4):
        shares = [order(12 // world_size, rank=rank, world_size=world_size).epoch(5) for rank in range(world_size)]
        assert np.array_equal(np.concatenate(shares, axis=1), alone)
    assert alone.dtype == np.int64 and len(alone) == len(order(12))


def test_an_epoch_is_a_permutation_that_drops_its_last_batch_and_changes():
    order = PlainBatches(103, 10, seed=1)
    rows = order.epoch(0)
    assert rows.shape == (10, 10)
    assert len(np.unique(rows)) == 100
    assert not np.array_equal(rows, order.epoch(1)) and np.array_equal(rows, order.epoch(0))
    assert not np.array_equal(rows, PlainBatches(103, 10, seed=2).epoch(0))


def test_a_weight_is_how_often_a_row_comes():
    order = PlainBatches(350, 1, segments=SEGMENTS)
    found = counts(order)
    assert (found[:100] == 1).all()
    assert sorted(found[100:150]) == [2] * 25 + [3] * 25
    assert sorted(found[150:]) == [0] * 150 + [1] * 50
    assert not np.array_equal(found, counts(order, 1))  # another share each epoch
    total = sum(counts(order, epoch) for epoch in range(400)) / 400
    assert total[100:150] == pytest.approx(2.5, abs=0.11) and total[150:] == pytest.approx(0.25, abs=0.1)


def test_episodes_with_replacement_are_a_bootstrap():
    order = EpisodeBatches(20_000, 1, episode_size=20_000)
    assert len(np.unique(order.epoch(0))) / 20_000 == pytest.approx(1 - np.exp(-1), abs=0.01)


def test_episodes_with_replacement_follow_the_weights():
    found = counts(EpisodeBatches(350, 1, episode_size=275_000, segments=SEGMENTS))  # 1,000 per unit of weight
    for part, weight in ((found[:100], 1.0), (found[100:150], 2.5), (found[150:], 0.25)):
        assert part.mean() / 1000 == pytest.approx(weight, rel=0.02)
        assert part.min() > 0.7 * part.mean()


def test_episodes_without_replacement_repeat_no_row_before_all_came():
    assert counts(EpisodeBatches(350, 1, episode_size=90, sampling="permutation")).max() == 1
    assert set(counts(EpisodeBatches(350, 1, episode_size=800, sampling="permutation"))) == {2, 3}


def test_what_makes_no_batch_is_a_sentence():
    with pytest.raises(
        UserError, match="the training data give 15 rows per epoch, fewer than one batch of 8 on each of 2"
    ):
        PlainBatches(15, 8, world_size=2)
    with pytest.raises(UserError, match="give 7 rows per epoch"):
        EpisodeBatches(100, 8, episode_size=7)
    with pytest.raises(UserError, match="--episode_sampling random is not one of replacement, permutation"):
        EpisodeBatches(100, 8, episode_size=10, sampling="random")


def test_the_order_of_a_source_has_its_weights():
    class Source:
        segments = [(4, 1.0), (2, 3.0)]

        def __len__(self):
            return 6

    assert list(counts(training_order(Source(), 1), size=6)) == [1, 1, 1, 1, 3, 3]
    assert training_order(Source(), 1, episode_size=50).epoch(0).shape == (50, 1)
