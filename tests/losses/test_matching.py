"""The losses of a matching head against sums written out by hand, and against cases with closed forms."""

import math

import pytest
import torch

from clip_vl.losses.matching import matching_losses, pair_matrix


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def by_hand(matrix, usable):
    """The same three numbers from lists, pair by pair; None is a pair that was not judged."""
    G = len(matrix)
    judged = {(i, j): matrix[i][j] for i in range(G) for j in range(G) if matrix[i][j] is not None}
    seen = {pair: value for pair, value in judged.items() if usable[pair[0]]}
    queries = [i for i in range(G) if usable[i]]
    image_to_text = [-math.log(math.exp(seen[i, i]) / sum(math.exp(v) for (a, _), v in seen.items() if a == i))
                     for i in queries]  # fmt: skip
    text_to_image = [-math.log(math.exp(seen[i, i]) / sum(math.exp(v) for (_, b), v in seen.items() if b == i))
                     for i in queries]  # fmt: skip
    own = [-math.log(sigmoid(seen[i, i])) for i in queries]
    others = [-math.log(1 - sigmoid(value)) for (i, j), value in seen.items() if i != j]
    nce = (sum(image_to_text) + sum(text_to_image)) / (2 * len(queries))
    itm = sum(own) / len(own) / 3 + 2 * sum(others) / len(others) / 3
    right = [max((v, j) for (a, j), v in seen.items() if a == i)[1] == i for i in queries]
    return nce, itm, 100 * sum(right) / len(right)


@pytest.mark.parametrize("usable", [[True] * 4, [True, False, True, True]])
def test_losses_are_the_sums_over_the_judged_pairs(usable):
    matrix = [[1.5, -0.3, None, 2.0], [0.2, 0.7, -1.0, None], [None, 3.0, -0.5, 0.1], [1.0, None, 0.4, 0.9]]
    pairs = [(i, j, v) for i, row in enumerate(matrix) for j, v in enumerate(row) if v is not None]
    images, texts, values = (torch.tensor(column) for column in zip(*pairs))
    given = pair_matrix(values, images, texts, (4, 4))
    found = matching_losses(given, torch.tensor(usable))
    expected = by_hand(matrix, usable)
    assert [found[name].item() for name in ("loss_nce", "loss_itm", "accuracy")] == pytest.approx(expected, abs=1e-5)


def test_equal_scores_have_closed_forms():
    """Among 1 + K equal candidates InfoNCE is log(1 + K), and at probability 0.5 the matching loss is log 2."""
    G, K = 5, 2
    own = torch.arange(G).repeat_interleave(K + 1)
    texts = (own + torch.arange(K + 1).repeat(G)) % G
    found = matching_losses(pair_matrix(torch.zeros(G * (K + 1)), own, texts, (G, G)), torch.ones(G, dtype=torch.bool))
    assert found["loss_nce"].item() == pytest.approx(math.log(1 + K), abs=1e-6)
    assert found["loss_itm"].item() == pytest.approx(math.log(2), abs=1e-6)


def test_an_image_that_could_not_be_read_has_no_gradient_and_spoils_none():
    images, texts = torch.tensor([0, 1, 2, 0, 1, 2]), torch.tensor([0, 1, 2, 1, 2, 0])
    log_odds = torch.randn(6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    losses = matching_losses(pair_matrix(log_odds, images, texts, (3, 3)), torch.tensor([True, False, True]))
    (losses["loss_nce"] + losses["loss_itm"]).backward()
    assert (log_odds.grad[images == 1] == 0).all() and (log_odds.grad[images != 1] != 0).all()
    none = matching_losses(pair_matrix(log_odds.detach(), images, texts, (3, 3)), torch.zeros(3, dtype=torch.bool))
    assert none["loss_nce"] == none["loss_itm"] == 0
