"""GQA's official questions -> the form of the program, as a stream, with the published classes or made ones."""

import json
import shutil

import pytest

from clip_vl.datasets.lxmert.answers import read_label_vocab
from clip_vl.datasets.official.gqa import convert_gqa, convert_gqa_submit
from clip_vl.datasets.storage.json_stream import iterate_json_list
from clip_vl.engine.errors import DataError, UserError


def question(text, answer, structural="query", semantic="attr", image="n161313"):
    types = {"structural": structural, "semantic": semantic, "detailed": "directOf"}
    return {"imageId": image, "question": text, "answer": answer, "fullAnswer": f"It is {answer}.", "types": types,
            "isBalanced": True, "semantic": [{"operation": "select", "dependencies": [], "argument": "x"}]}  # fmt: skip


OFFICIAL = {
    "train": {"02": question("What color?", "red"), "01": question("Is it?", "yes", "verify", "obj", "2354786")},
    "val": {"03": question("What color?", "blue")},
    "testdev": {"04": question("What animal?", "unicorn")},
}


@pytest.fixture
def root(tmp_path):
    for split, questions in OFFICIAL.items():
        write(tmp_path, f"{split}_balanced_questions", questions)
    return tmp_path


def write(root, name, content):
    path = root / "official" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def rows(root, split):
    return [row for _, row in iterate_json_list(root / "gqa" / f"{split}.json")]


def test_questions_keep_their_order_their_string_id_and_both_types(root):
    assert len(convert_gqa(root)) == 5
    assert rows(root, "train") == [
        {"question_id": "02", "img_id": "n161313", "sent": "What color?", "question_type": "query",
         "answer_type": "attr", "label": {"red": 1.0}},
        {"question_id": "01", "img_id": "2354786", "sent": "Is it?", "question_type": "verify",
         "answer_type": "obj", "label": {"yes": 1.0}},
    ]  # fmt: skip
    assert [row["label"] for row in rows(root, "testdev")] == [{"unicorn": 1.0}]


def test_classes_are_the_answers_of_train_and_valid_and_not_of_testdev(root):
    convert_gqa(root)
    assert read_label_vocab(root / "gqa") == ["blue", "red", "yes"]


def test_the_published_classes_are_kept(root, real_data):
    (root / "gqa").mkdir()
    for name in ("label2ans", "ans2label"):
        source = real_data / "probes" / "lxmert" / f"gqa_trainval_{name}.json"
        shutil.copy(source, root / "gqa" / f"trainval_{name}.json")
    assert len(convert_gqa(root)) == 3
    assert len(read_label_vocab(root / "gqa")) == 1842


def test_the_questions_of_the_server_have_no_label(tmp_path):
    write(tmp_path, "submission_all_questions", {"09": {"imageId": "n1", "question": "Who?", "isBalanced": False}})
    assert convert_gqa_submit(tmp_path) == [tmp_path / "gqa" / "submit.json"]
    assert rows(tmp_path, "submit") == [{"question_id": "09", "img_id": "n1", "sent": "Who?"}]


def test_a_repeat_writes_nothing_and_an_interrupted_conversion_is_completed(root):
    path = root / "official" / "val_balanced_questions.json"
    whole = path.read_text()
    path.write_text(whole[:-20])
    with pytest.raises(DataError, match=r"val_balanced_questions.json:1: the file ends inside"):
        convert_gqa(root)
    assert [p.name for p in (root / "gqa").iterdir()] == ["train.json"]
    path.write_text(whole)
    assert [p.name for p in convert_gqa(root)] == [
        "valid.json", "testdev.json", "trainval_label2ans.json", "trainval_ans2label.json",
    ]  # fmt: skip
    assert convert_gqa(root) == []
    (root / "gqa" / "trainval_ans2label.json").unlink()
    assert len(convert_gqa(root)) == 1


@pytest.mark.parametrize(
    "content, words",
    [
        ('{"1": {"imageId": "n1"}}', r"json:1: question '1' has an entry without the key 'question'"),
        ('{"1":\n {"imageId": [7], "question": "Who?"}}', r"json:1: question '1' .*an id must be a number or a text"),
        ('{\n\n"1": {"imageId": "n", "question": "Q", "answer": "a"}}', r"json:3: question '1' .*the key 'types'"),
        ('{"1": 5}', "official form"),
        ('[{"imageId": "n1"}]', r"json:1: a JSON object, '\{...\}', was expected"),
        ("{2: {}}", r"json:1: a key is a string, not 2"),
        ('{"1" {}}', r"json:1: ':' was expected after a key"),
        ('{"1": {"imageId": "n", "question": "Q"}} x', r"the object has ended, but more text follows"),
    ],
)
def test_questions_of_another_form_are_named_by_line_and_id(tmp_path, content, words):
    write(tmp_path, "submission_all_questions", content)
    with pytest.raises(DataError, match=words):
        convert_gqa_submit(tmp_path)
    assert not list((tmp_path / "gqa").iterdir())


def test_no_answers_at_all_are_no_classes(root):
    for split in OFFICIAL:
        write(root, f"{split}_balanced_questions", {})
    with pytest.raises(DataError, match="have no answers to define classes"):
        convert_gqa(root)


def test_a_missing_official_file_is_a_kind_error(tmp_path):
    with pytest.raises(UserError, match=r"train_balanced_questions.json is missing"):
        convert_gqa(tmp_path)
