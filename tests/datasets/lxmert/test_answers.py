import json
import os
from pathlib import Path

import pytest

from clip_vl.datasets.lxmert.answers import AnswerTable, label_scores, normalise_answer, read_label_vocab
from clip_vl.engine.errors import DataError, UserError

REAL = Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data")) / "probes" / "lxmert"
needs_real_data = pytest.mark.skipif(not REAL.exists(), reason="CLIP_VL_REAL_DATA has no probes/lxmert")


def write(path, value):
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
    return path


def table_of(tmp_path, *answers):
    return AnswerTable(write(tmp_path / "all_ans.json", [{"ans": a, "dsets": ["vqa"]} for a in answers]))


@pytest.mark.parametrize(
    "raw, normal",
    [
        ("", ""),
        ("Dog", "dog"),
        ("dog.", "dog"),
        ("dog .", "dog"),
        ("dog..", "dog."),
        (".", ""),
        (" dog", " dog"),  # spaces go only where something else went
        ("a dog", "dog"),
        ("an owl", "owl"),
        ("The  dog", "dog"),
        ("a an the dog", "dog"),  # each article once, in this order
        ("the a dog", "a dog"),
        ("the a man", "man"),
        ("the the woman", "woman"),
        ("A man.", "man"),
        ("another", "another"),
        ("theatre", "theatre"),
        ("one", "1"),
        ("Ten.", "10"),
        ("the three", "3"),
        ("three dogs", "three dogs"),
        ("eleven", "eleven"),
        ("grey", "gray"),
        ("grey cat", "grey cat"),
    ],
)
def test_normalisation_follows_the_published_order(raw, normal):
    assert normalise_answer(raw) == normal


@needs_real_data
def test_every_answer_of_the_published_table_is_its_own_normal_form():
    entries = json.loads((REAL / "all_ans.json").read_text())
    assert len(entries) == 9500
    assert [entry["ans"] for entry in entries if normalise_answer(entry["ans"]) != entry["ans"]] == []
    assert AnswerTable(REAL / "all_ans.json").answers == [entry["ans"] for entry in entries]


@needs_real_data
@pytest.mark.parametrize(
    "qa_sets, size",
    [
        (["visual7w"], 9409),
        (["vqa"], 3124),
        (["gqa"], 1735),
        (["vqa", "gqa"], 3735),
        (["vqa", "visual7w"], 9491),
        (["gqa", "visual7w"], 9419),
        (["vqa", "gqa", "visual7w"], 9500),
        (None, 9500),
    ],
)
def test_answer_sets_keep_the_published_numbers_of_answers(qa_sets, size):
    table = AnswerTable(REAL / "all_ans.json", qa_sets)
    assert len(table) == len(table.answers) == len(table.index) == size
    assert all(table.answers[table.index[answer]] == answer for answer in table.answers[::100])  # numbered densely


@needs_real_data
@pytest.mark.parametrize(
    "task, size, found, missing",
    [("vqa", 3129, 3124, {"", "1 4", "1 world", "5 star", "visilab"}), ("gqa", 1842, 1736, None)],
)
def test_the_table_holds_all_but_a_few_answers_of_each_task(tmp_path, task, size, found, missing):
    for name in ("trainval_label2ans.json", "trainval_ans2label.json"):
        (tmp_path / name).write_bytes((REAL / f"{task}_{name}").read_bytes())
    answers, table = read_label_vocab(tmp_path), AnswerTable(REAL / "all_ans.json")
    unknown = {answer for answer in answers if table.find(answer) is None}
    assert len(answers) == size and len(answers) - len(unknown) == found
    assert missing is None or unknown == missing


@needs_real_data
def test_the_digest_tells_tables_apart():
    digests = {AnswerTable(REAL / "all_ans.json", sets).digest for sets in (None, ["vqa"], ["gqa"], ["vqa", "gqa"])}
    assert len(digests) == 4


def test_an_unknown_answer_set_is_refused_with_the_known_ones(tmp_path):
    path = write(tmp_path / "all_ans.json", [{"ans": "dog", "dsets": ["vqa", "gqa"]}])
    with pytest.raises(UserError, match=r"unknown answer set 'vqaa'; .*all_ans.json has gqa, vqa"):
        AnswerTable(path, ["vqa", "vqaa"])


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"ans": "cat"}, "must look like"),
        ({"ans": 3, "dsets": []}, "must look like"),
        ({"ans": "cat", "dsets": "vqa"}, "must look like"),
        ({"ans": "cat", "dsets": [1]}, "must look like"),
        ("cat", "must look like"),
        ({"ans": "dog", "dsets": []}, "'dog' stands in the table twice"),
        ({"ans": "A cat", "dsets": []}, "normal form 'cat'"),
    ],
)
def test_a_wrong_table_entry_is_named_with_its_line(tmp_path, entry, words):
    path = write(tmp_path / "all_ans.json", [{"ans": "dog", "dsets": []}, entry])
    with pytest.raises(DataError) as caught:
        AnswerTable(path)
    assert str(caught.value).startswith(f"{path}:6: ") and words in str(caught.value)


def test_an_empty_table_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no answers"):
        AnswerTable(write(tmp_path / "all_ans.json", []))


def test_answers_that_share_a_class_count_once_with_the_larger_score(tmp_path):
    table = table_of(tmp_path, "dog", "1", "cat")
    label = {"one": 0.6, "a cat": 0.3, "1": 0.9, "One.": 0.3, "platypus": 1, "dog": 0}
    assert label_scores(label, table.find) == ([1, 2], [0.9, 0.3], 1)


def test_labels_without_answers_have_no_classes(tmp_path):
    assert label_scores({}, table_of(tmp_path, "dog").find) == ([], [], 0)


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan"), float("inf"), "1", None, True, [1]])
def test_a_score_outside_zero_to_one_is_refused(score):
    with pytest.raises(DataError, match="the score of answer 'dog' must be a number from 0 to 1"):
        label_scores({"dog": score}, {"dog": 0}.get)


@pytest.mark.parametrize(
    "answers, labels, words",
    [
        (["", "dog"], {"": 0, "dog": 0}, "'dog' is 0 here, but 1 in"),
        (["", "dog"], {"": 0, "cat": 1}, "'dog' is None here, but 1 in"),
        (["", "dog"], {"": 0}, "an object with the 2 answers"),
        (["", "dog", "dog"], {"": 0, "dog": 1, "cat": 2}, "'dog' is 1 here, but 2 in"),
        ({"": 0}, {"": 0}, "a list of answers was expected"),
        ([], {}, "a list of answers was expected"),
        ([1], {"1": 0}, "a list of answers was expected"),
        ([""], [0], "an object with the 1 answers"),
    ],
)
def test_label_vocabularies_that_disagree_are_refused(tmp_path, answers, labels, words):
    write(tmp_path / "trainval_label2ans.json", answers)
    write(tmp_path / "trainval_ans2label.json", labels)
    with pytest.raises(DataError, match=words):
        read_label_vocab(tmp_path)
