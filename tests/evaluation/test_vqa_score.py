"""The official evaluator, held to its own outputs (golden files) and to cases small enough to work out by hand."""

import json
import os
from pathlib import Path

import pytest

from clip_vl.engine.errors import DataError
from clip_vl.evaluation import vqa_score

GOLDEN = Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data")) / "probes" / "vqa"


def golden(name):
    if not (GOLDEN / name).exists():
        pytest.skip(f"no {GOLDEN / name}: set CLIP_VL_REAL_DATA")
    return json.loads((GOLDEN / name).read_text())


def annotation(question_id, answers, answer_type="other", question_type="what"):
    return {
        "question_id": question_id,
        "answers": [{"answer": answer, "answer_id": i + 1} for i, answer in enumerate(answers)],
        "answer_type": answer_type,
        "question_type": question_type,
    }


@pytest.mark.parametrize(
    "raw, expected",
    [
        ("Two dogs", "2 dogs"),
        ("none", "0"),
        ("the", ""),
        ("1,000 people", "1000 people"),
        ("1,000 t-shirts", "1000 tshirts"),  # a number with a comma deletes every mark instead of spacing it
        ("t-shirt", "t shirt"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # two apostrophes missing: not in the table
        ("'ow'sat", "'ow's'at"),
        ("somebody'd", "somebodyd"),
        ("im", "im"),
        ("3.50", "3.50"),
        ("5.", "5"),  # the misspelt look-behind takes a period after a digit too
        ("U.S.A.", "usa"),
        ("\tone\n", "1"),
    ],
)
def test_normalisation_of_cases_worked_out_by_hand(raw, expected):
    assert vqa_score.normalise(raw) == expected


def test_only_the_first_32_periods_are_removed():
    assert vqa_score.strip_punctuation("." * 40) == "." * 8


def test_normalisation_equals_the_official_evaluator_on_every_golden_answer():
    for case in golden("vqa_golden_normalise.json"):
        assert vqa_score.strip_punctuation(case["raw"]) == case["after_punctuation"], case["raw"]
        assert vqa_score.normalise_words(case["after_punctuation"]) == case["normalised"], case["raw"]


def test_tables_equal_the_official_ones_where_they_have_an_effect():
    """Left out: pairs that map to themselves, and keys with a capital, which a lower-cased answer never meets."""
    tables = golden("vqa_eval_tables.json")
    effective = {key: word for key, word in tables["contractions"].items() if key != word and key == key.lower()}
    assert effective == vqa_score.CONTRACTIONS
    assert tables["number_words"] == vqa_score.DIGITS
    assert set(tables["articles"]) == vqa_score.ARTICLES
    assert set(tables["punctuation"]) == vqa_score.PUNCTUATION


def test_accuracy_equals_the_official_evaluator_overall_and_per_type():
    expected = golden("vqa_golden_accuracy.json")
    cases = expected["cases"]
    for case in cases:
        percent = 100 * vqa_score.question_accuracy(case["prediction"], case["answers"])
        assert round(percent, 4) == case["accuracy_percent"], case
    rows = [annotation(i, c["answers"], c["answer_type"], c["question_type"]) for i, c in enumerate(cases)]
    result = vqa_score.official_accuracy({i: case["prediction"] for i, case in enumerate(cases)}, rows)
    assert result["n"] == len(cases)
    assert round(result["overall"], 4) == expected["overall"]
    assert {k: round(v, 4) for k, v in result["per_answer_type"].items()} == expected["perAnswerType"]
    assert {k: round(v, 4) for k, v in result["per_question_type"].items()} == expected["perQuestionType"]


@pytest.mark.parametrize("count, accuracy", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_leave_one_out_accuracy_has_a_closed_form(count, accuracy):
    answers = ["cat"] * count + ["dog"] * (10 - count)
    assert vqa_score.question_accuracy("cat", answers) == pytest.approx(accuracy)


def test_soft_scores_are_the_accuracies_of_the_answers():
    answers = ["cat"] * 4 + ["dog"] * 3 + ["cow"] * 2 + ["hen"]
    scores = vqa_score.soft_scores(answers)
    assert scores == {"cat": 1.0, "dog": 0.9, "cow": 0.6, "hen": 0.3}
    for answer, score in scores.items():
        assert vqa_score.question_accuracy(answer, answers) == pytest.approx(score)


def test_unanimous_answers_are_compared_to_the_letter():
    assert vqa_score.question_accuracy("A dog", ["dog"] * 10) == 0
    assert vqa_score.question_accuracy("A dog", ["dog"] * 9 + ["cat"]) == 1


def test_a_split_is_averaged_over_questions_and_by_type():
    rows = [annotation(1, ["yes"] * 10, "yes/no", "is the"), annotation(2, ["2"] * 2 + ["3"] * 8, "number", "how many")]
    result = vqa_score.official_accuracy({1: "yes", 2: "two"}, rows)
    assert result["overall"] == pytest.approx(80)
    assert result["per_answer_type"] == pytest.approx({"yes/no": 100, "number": 60})
    assert result["per_question_type"] == pytest.approx({"is the": 100, "how many": 60})


@pytest.mark.parametrize("predicted, words", [([1], "1 questions have no prediction"), ([1, 2, 3], "1 .* are unknown")])
def test_a_split_scored_in_part_is_an_error(predicted, words):
    predictions = dict.fromkeys(predicted, "yes")
    with pytest.raises(DataError, match=words):
        vqa_score.official_accuracy(predictions, [annotation(1, ["yes"] * 10), annotation(2, ["no"] * 10)])


def test_nothing_to_score_is_an_error():
    with pytest.raises(DataError, match="no annotations"):
        vqa_score.official_accuracy({}, [])
