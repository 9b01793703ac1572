"""Counter-based draws."""

import torch

from clip_vl.engine.random import derive_seed, numpy_rng, seed_step, torch_generator


def test_a_key_gives_one_stream_and_every_part_of_it_counts():
    seeds = [derive_seed(1, "a", 2), derive_seed(2, "a", 2), derive_seed(1, "b", 2), derive_seed(1, "a", 3)]
    assert len(set(seeds)) == 4 and derive_seed(1, "a", 2) == seeds[0]
    assert derive_seed(9595, "sample", 3, 17) == 1604727565172131324  # the same on every machine and version


def test_generators_of_equal_keys_agree():
    assert numpy_rng(1, "x", 5).random() == numpy_rng(1, "x", 5).random()
    assert torch.rand(1, generator=torch_generator(1, "x")) == torch.rand(1, generator=torch_generator(1, "x"))


def test_ranks_draw_different_dropout():
    seed_step(1, 7, 0)
    first = torch.rand(3)
    seed_step(1, 7, 1)
    assert not torch.equal(first, torch.rand(3))
