"""The answer report, on scores small enough to average by hand."""

import contextlib

import pytest
import torch

from clip_vl.engine.errors import DataError
from clip_vl.evaluation.answers import answer_report, consistency, predict
from clip_vl.evaluation.bootstrap import interval


def test_report_has_mean_count_and_interval_of_every_group():
    scores = [1.0, 0.0, 0.3, 0.9]
    report = answer_report(scores, {"answer_type": ["yes/no", "number", "yes/no", "yes/no"]})
    assert report["accuracy"] == pytest.approx(55)
    assert report["accuracy_n"] == 4
    assert (report["accuracy_low"], report["accuracy_high"]) == pytest.approx([100 * x for x in interval(scores)])
    assert report["accuracy/answer_type/yes/no"] == pytest.approx(100 * 2.2 / 3)
    assert report["accuracy/answer_type/yes/no_n"] == 3
    assert report["accuracy/answer_type/number"] == report["accuracy/answer_type/number_high"] == 0
    assert len(report) == 3 * 4


def test_groups_come_largest_first_and_unlabelled_questions_only_count_overall():
    report = answer_report([1, 1, 0, 0], {"question_type": ["are", "what", "what", ""]})
    keys = [key for key in report if key.endswith("_n")]
    assert keys == ["accuracy_n", "accuracy/question_type/what_n", "accuracy/question_type/are_n"]
    assert report["accuracy_n"] == 4


def test_report_of_nothing_is_an_error():
    with pytest.raises(DataError, match="no question was scored"):
        answer_report([])


def test_consistency_is_the_share_of_groups_without_a_fault():
    report = consistency([1, 0, 1, 1, 0], ["a", "a", "b", "b", "c"])
    assert report["consistency"] == pytest.approx(100 / 3) and report["consistency_n"] == 3


@pytest.mark.parametrize("one_is_right", [False, True])
def test_predictions_follow_the_logits_where_probabilities_round_to_the_same(one_is_right):
    """The sigmoids of 20 and 30 are both 1 in float32."""
    logits = torch.tensor([[20.0, 30.0, -9.0], [0.0, -1.0, 2.0]])
    batches = [{"rows": torch.tensor([4, 2])}]
    found = predict(torch.nn.Identity(), lambda *_: logits, batches, contextlib.nullcontext(), 2, one_is_right)
    assert [(row, classes) for row, classes, _ in found] == [(2, [2, 0]), (4, [1, 0])]
    expected = logits.softmax(1)[1] if one_is_right else logits.sigmoid()[1]
    assert found[0][2] == pytest.approx([expected[2].item(), expected[0].item()])
