"""The loss with soft scores against closed forms."""

import math

import pytest
import torch
from torch.nn import functional as F

from clip_vl.losses.answering import single_answer_loss, soft_answer_loss


@pytest.mark.parametrize("answers", [2, 3129])
def test_zero_logits_cost_log_two_per_answer(answers):
    assert soft_answer_loss(torch.zeros(3, answers), torch.rand(3, answers)).item() == pytest.approx(
        answers * math.log(2), rel=1e-5
    )


def test_a_scale_of_one_means_the_sum_over_answers_and_the_mean_over_questions():
    logits, scores = torch.randn(4, 7), torch.rand(4, 7)
    mean = F.binary_cross_entropy_with_logits(logits, scores)
    assert torch.allclose(soft_answer_loss(logits, scores, 1), mean * 7)
    assert torch.allclose(soft_answer_loss(logits, scores, 500), mean * 500)


def test_one_right_answer_costs_its_cross_entropy_over_the_rows_that_count():
    logits, targets = torch.randn(5, 4), torch.tensor([0, 3, -1, 2, 1])
    usable = torch.tensor([True, True, True, False, True])
    expected = F.cross_entropy(logits[[0, 1, 4]], targets[[0, 1, 4]])
    assert torch.allclose(single_answer_loss(logits, targets, usable), expected)
    assert single_answer_loss(logits, targets, torch.zeros(5, dtype=torch.bool)).item() == 0
