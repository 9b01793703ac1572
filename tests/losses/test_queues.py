"""Queues: order, wrap-around, and what they start from."""

import pytest
import torch

from clip_vl.losses.alignment import build_loss
from clip_vl.losses.queues import FeatureQueue


@pytest.mark.parametrize("K, sizes", [(5, [2, 2, 2, 2]), (5, [3, 7, 1]), (4, [4, 4, 1]), (3, [11]), (1, [2, 1])])
def test_a_queue_holds_the_last_features_whatever_the_batches(K, sizes):
    queue, stream, start = FeatureQueue(torch.full((K, 1), -1.0)), torch.arange(float(sum(sizes)))[:, None], 0
    for size in sizes:
        queue.add(stream[start : start + size])
        start += size
    kept = torch.cat([torch.full((K, 1), -1.0), stream])[-K:]
    place = int(queue.place)
    assert torch.equal(torch.cat([queue.features[place:], queue.features[:place]]), kept)  # the oldest is next to go


@pytest.mark.parametrize("name", ["CompRess-1q", "CompRess-2q", "SEED"])
def test_a_batch_larger_than_the_queue_trains(name):
    loss = build_loss(name, 4, queue_size=3)
    student = torch.randn(8, 4, requires_grad=True)
    loss(student, torch.randn(8, 4)).backward()
    assert torch.isfinite(student.grad).all() and student.grad.abs().max() > 0


def test_scores_are_of_the_queue_before_the_batch_joins_it():
    loss = build_loss("SEED", 4, queue_size=6)
    student, teacher = torch.randn(2, 3, 4)
    first = loss(student, teacher)
    assert not torch.allclose(loss(student, teacher), first)  # now the teacher's features are in it
    loss = build_loss("SEED", 4, queue_size=6)
    assert torch.equal(loss.eval()(student, teacher), first)


def test_queues_start_as_published_and_by_the_seed():
    """CompRess: uniform in +-1 / sqrt(D / 3). SEED: unit vectors."""
    banks = [build_loss("CompRess-2q", 48, queue_size=500, seed=seed) for seed in (0, 0, 1)]
    features = banks[0].teacher_queue.features
    assert 0.24 < features.abs().max() <= 0.25 and abs(features.mean()) < 0.01
    assert torch.equal(features, banks[1].teacher_queue.features)
    assert not torch.equal(features, banks[2].teacher_queue.features)
    assert not torch.equal(features, banks[0].student_queue.features)
    assert torch.allclose(build_loss("SEED", 48, queue_size=9).queue.features.norm(dim=1), torch.ones(9))


def test_state_is_saved_and_read_back():
    loss, other = (build_loss("CompRess-2q", 4, queue_size=6, seed=seed) for seed in (0, 1))
    loss(torch.randn(4, 4), torch.randn(4, 4))
    other.load_state_dict(loss.state_dict())
    given = torch.randn(2, 5, 4)
    assert torch.equal(loss(*given), other(*given)) and torch.equal(loss.teacher_queue.place, other.teacher_queue.place)
