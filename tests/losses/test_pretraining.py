"""The pre-training losses against closed forms."""

import math

import pytest
import torch
from torch.nn import functional as F

from clip_vl.losses.pretraining import answer_loss, masked_lm_loss, matched_loss

LOSSES = [masked_lm_loss, matched_loss, answer_loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [2, 30522])
def test_uniform_logits_cost_the_log_of_the_number_of_classes(loss, classes):
    targets = torch.tensor([0, 1, -1])
    assert loss(torch.zeros(3, classes), targets).item() == pytest.approx(math.log(classes), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targets", [[], [-1, -1]])
def test_no_target_costs_nothing_and_gives_zero_gradients(loss, targets):
    logits = torch.randn(len(targets), 5, requires_grad=True)
    value = loss(logits, torch.tensor(targets, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_rows_do_not_count(loss):
    logits, targets = torch.randn(4, 5), torch.tensor([1, -1, 4, -1])
    assert torch.allclose(loss(logits, targets), F.cross_entropy(logits[[0, 2]], targets[[0, 2]]))


def test_two_processes_with_the_shared_count_average_to_the_whole_batch():
    logits, targets = torch.randn(6, 5), torch.tensor([1, -1, 4, -1, -1, -1])
    count = (targets >= 0).sum() / 2
    shares = [answer_loss(logits[rows], targets[rows], count) for rows in ([0, 1, 2], [3, 4, 5])]
    assert torch.allclose(sum(shares) / 2, answer_loss(logits, targets))


def test_half_precision_logits_are_summed_in_single_precision():
    assert masked_lm_loss(torch.zeros(1, 30522, dtype=torch.bfloat16), torch.tensor([7])).dtype == torch.float32
