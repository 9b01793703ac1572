"""The answer report, on scores small enough to average by hand."""

import pytest

from clip_vl.engine.errors import DataError
from clip_vl.evaluation.answers import answer_report
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
