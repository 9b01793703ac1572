import pytest
import torch

from clip_vl.datasets.lxmert.masking import mask_regions, mask_tokens

MASK, VOCAB = 103, 30522


def batch(*lengths, longest=20):
    """Sequences of the given lengths: 101, words 1000 + place, 102, then padding."""
    ids, mask = (
        torch.zeros(len(lengths), longest, dtype=torch.int64),
        torch.zeros(len(lengths), longest, dtype=torch.int64),
    )
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.arange(1000, 1000 + length)
        ids[row, 0], ids[row, length - 1], mask[row, :length] = 101, 102, 1
    return ids, mask


def test_a_batch_worked_by_hand():
    ids, mask = batch(8, 4, longest=8)
    uniform = torch.full((3, 2, 8), 0.99)
    #                          CLS   hidden  edge  replaced  kept   not chosen  not  SEP
    uniform[0, 0] = torch.tensor([0.0, 0.1499, 0.15, 0.0, 0.1, 0.2, 0.9, 0.0])
    uniform[1, 0] = torch.tensor([0.0, 0.7999, 0.0, 0.8, 0.9, 0.0, 0.0, 0.0])
    uniform[2, 0] = torch.tensor([0.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5])
    uniform[:, 1] = 0.0  # everything that may be chosen is chosen and hidden
    masked, targets = mask_tokens(ids, mask, uniform, 0.15, MASK, VOCAB)
    assert masked.tolist() == [
        [101, MASK, 1002, VOCAB // 2, 1004, 1005, 1006, 102],
        [101, MASK, MASK, 102, 0, 0, 0, 0],
    ]
    assert targets.tolist() == [[-1, 1001, -1, 1003, 1004, -1, -1, -1], [-1, 1001, 1002, -1, -1, -1, -1, -1]]


def test_special_tokens_and_padding_are_never_chosen():
    for longest in (1, 2, 3, 20):
        lengths = [length for length in (2, 3, 11, 20) if length <= longest] or [longest]
        ids, mask = batch(*lengths, longest=longest)
        masked, targets = mask_tokens(ids, mask, torch.zeros(3, *ids.shape), 1.0, MASK, VOCAB)
        words = (ids >= 1000) & (ids < 1000 + longest)
        assert torch.equal(targets >= 0, words) and torch.equal(masked == MASK, words)
        assert torch.equal(masked[~words], ids[~words])


def test_a_sequence_that_is_all_padding_has_no_targets():
    ids, mask = batch(12)
    masked, targets = mask_tokens(ids, torch.zeros_like(mask), torch.zeros(3, *ids.shape), 1.0, MASK, VOCAB)
    assert torch.equal(masked, ids) and (targets == -1).all()


def test_rates_are_those_of_bert():
    """15 % chosen; of these 80 % hidden, 10 % random, 10 % kept, each within five standard deviations."""
    ids, mask = batch(*[20] * 20_000)
    uniform = torch.rand(3, *ids.shape, generator=torch.Generator().manual_seed(0))
    masked, targets = mask_tokens(ids, mask, uniform, 0.15, MASK, VOCAB)
    words, chosen = 18 * 20_000, targets >= 0
    hidden, kept = (chosen & (masked == MASK)).sum(), (chosen & (masked == ids)).sum()
    n = int(chosen.sum())
    assert abs(n - 0.15 * words) < 5 * (words * 0.15 * 0.85) ** 0.5
    assert abs(hidden - 0.8 * n) < 5 * (n * 0.16) ** 0.5
    assert abs(kept - 0.1 * n) < 5 * (n * 0.09) ** 0.5
    assert torch.equal(targets[chosen], ids[chosen]) and torch.equal(masked[~chosen], ids[~chosen])


def test_random_tokens_are_uniform_over_the_whole_vocabulary():
    ids, mask = batch(*[20] * 5000)
    uniform = torch.rand(3, *ids.shape, generator=torch.Generator().manual_seed(1))
    uniform[0], uniform[1] = 0, 0.85
    masked, _ = mask_tokens(ids, mask, uniform, 0.15, MASK, 10)
    counts = torch.bincount(masked[:, 1:-1].flatten(), minlength=10)
    assert len(counts) == 10 and (counts - 9000).abs().max() < 5 * (90_000 * 0.09) ** 0.5


@pytest.mark.parametrize("vocab_size", [30522, 31090, 65_537])
def test_the_largest_uniform_number_stays_inside_the_vocabulary(vocab_size):
    ids, mask = batch(3, longest=3)
    uniform = torch.tensor([0.0, 0.85, 1 - 2**-24])[:, None, None].expand(3, 1, 3)
    masked, _ = mask_tokens(ids, mask, uniform, 0.15, MASK, vocab_size)
    assert masked.tolist() == [[101, vocab_size - 1, 102]]


def test_the_masks_are_a_function_of_the_numbers_drawn():
    ids, mask = batch(20, 7, 13)
    uniform = torch.rand(3, *ids.shape, generator=torch.Generator().manual_seed(2))
    first, again = (mask_tokens(ids, mask, uniform, 0.5, MASK, VOCAB) for _ in range(2))
    alone = [mask_tokens(ids[i : i + 1], mask[i : i + 1], uniform[:, i : i + 1], 0.5, MASK, VOCAB) for i in range(3)]
    for k in range(2):
        assert torch.equal(first[k], again[k]) and torch.equal(first[k], torch.cat([part[k] for part in alone]))


def test_regions_worked_by_hand():
    features = torch.arange(8.0).view(1, 4, 2) + 1
    visible = torch.tensor([[True, True, True, False]])
    #                               zero    other  kept  padding
    uniform = torch.tensor([[[0.0, 0.1499, 0.1, 0.0]], [[0.79, 0.85, 0.95, 0.0]], [[0.0, 0.99, 0.0, 0.0]]])
    masked, chosen = mask_regions(features, visible, uniform, 0.15)
    assert chosen.tolist() == [[True, True, True, False]]
    assert masked.tolist() == [[[0, 0], [5, 6], [5, 6], [7, 8]]]  # the other one is the last that is no padding
    assert not mask_regions(features, visible, uniform, 0.0)[1].any()


def test_regions_are_chosen_and_hidden_in_the_published_shares():
    features, visible = torch.rand(200, 36, 3) + 1, torch.ones(200, 36, dtype=torch.bool)
    masked, chosen = mask_regions(features, visible, torch.rand(3, 200, 36), 0.15)
    changed = (masked != features).any(-1)
    assert chosen.float().mean() == pytest.approx(0.15, abs=0.015)
    assert (masked == 0).all(-1).sum() / chosen.sum() == pytest.approx(0.8, abs=0.04)
    assert changed.sum() / chosen.sum() == pytest.approx(0.9, abs=0.03) and not (changed & ~chosen).any()
