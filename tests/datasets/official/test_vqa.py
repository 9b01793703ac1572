"""Official VQA files -> the formats used, on a made split with known answers."""

import json

import pytest

from clip_vl.datasets.lxmert.answers import read_label_vocab
from clip_vl.datasets.official.files import minival_rule
from clip_vl.datasets.official.vqa import convert_vqa, convert_vqa_test
from clip_vl.datasets.storage.json_stream import iterate_json_list
from clip_vl.engine.errors import DataError
from clip_vl.evaluation.vqa_score import normalise, official_accuracy, question_accuracy, soft_scores

ANSWERS = ["Two dogs"] * 4 + ["2 dogs"] + ["a cat"] * 2 + ["cat.", "bird", "UFO"]


def write_official(root, split, first_id, count, agreed="Two dogs"):
    """`count` questions on as many images; agreed answers cycle through cat and `agreed`."""
    folder = root / "official"
    folder.mkdir(exist_ok=True)
    ids = range(first_id, first_id + count)
    questions = [{"question_id": 10 * i, "image_id": i, "question": f"What is in {i}?"} for i in ids]
    answers = [{"answer": a, "answer_id": n, "answer_confidence": "yes"} for n, a in enumerate(ANSWERS, start=1)]
    annotations = [
        {"question_id": 10 * i, "image_id": i, "question_type": "what is", "answer_type": "other", "answers": answers,
         "multiple_choice_answer": ("cat", agreed)[i % 2]}
        for i in ids
    ]  # fmt: skip
    about = {"data_subtype": split, "license": "free"}
    name = f"v2_OpenEnded_mscoco_{split}_questions.json"
    (folder / name).write_text(json.dumps(about | {"questions": questions}))
    (folder / f"v2_mscoco_{split}_annotations.json").write_text(json.dumps(about | {"annotations": annotations}))


@pytest.fixture
def root(tmp_path):
    write_official(tmp_path, "train2014", 1, 20)
    write_official(tmp_path, "val2014", 101, 40)
    return tmp_path


def rows(root, name):
    return [row for _, row in iterate_json_list(root / "vqa" / f"{name}.json")]


def test_labels_are_what_the_official_metric_gives_each_answer(root):
    convert_vqa(root, normalise, soft_scores)
    assert read_label_vocab(root / "vqa") == ["2 dogs", "cat"]
    train = rows(root, "train")
    assert len(train) == 20
    assert train[0] == {
        "question_id": 10,
        "img_id": "COCO_train2014_000000000001",
        "sent": "What is in 1?",
        "question_type": "what is",
        "answer_type": "other",
        "label": {"2 dogs": 1.0, "cat": 0.9},  # bird and UFO are no classes
    }
    for answer, score in train[0]["label"].items():
        assert question_accuracy(answer, ANSWERS) == pytest.approx(score)


def test_val_is_split_by_image_and_the_official_pair_of_minival_scores_it(root):
    convert_vqa(root, normalise, soft_scores)
    nominival, minival = rows(root, "nominival"), rows(root, "minival")
    assert len(nominival) + len(minival) == 40 and 0 < len(minival) < 20
    annotations = json.loads((root / "vqa" / "v2_mscoco_minival2014_annotations.json").read_text())
    questions = json.loads((root / "vqa" / "v2_OpenEnded_mscoco_minival2014_questions.json").read_text())
    ids = {row["question_id"] for row in minival}
    assert {row["question_id"] for row in annotations["annotations"]} == ids
    assert {row["question_id"] for row in questions["questions"]} == ids
    assert annotations["license"] == "free" and annotations["data_subtype"] == "minival2014"
    result = official_accuracy(dict.fromkeys(ids, "cat"), annotations["annotations"])
    assert result["overall"] == pytest.approx(100 * sum(row["label"]["cat"] for row in minival) / len(minival))


def test_a_published_list_of_minival_images_decides(root):
    (root / "lxmert").mkdir()
    (root / "lxmert" / "mscoco_minival.json").write_text('[{"img_id": "COCO_val2014_000000000105"}]')
    convert_vqa(root, normalise, soft_scores)
    assert [row["question_id"] for row in rows(root, "minival")] == [1050]


def test_an_eighth_of_the_images_is_held_out_and_always_the_same(tmp_path):
    names = [f"COCO_val2014_{i:012d}" for i in range(4000)]
    held_out = [name for name in names if minival_rule(tmp_path)(name)]
    assert 400 < len(held_out) < 600
    assert held_out[:2] == ["COCO_val2014_000000000004", "COCO_val2014_000000000015"]


def test_a_repeat_writes_nothing_and_a_removed_file_comes_back_the_same(root):
    written = convert_vqa(root, normalise, soft_scores)
    assert len(written) == 7
    contents = {path: path.read_bytes() for path in written}
    assert convert_vqa(root, normalise, soft_scores) == []
    for name in ("minival.json", "trainval_ans2label.json"):
        (root / "vqa" / name).unlink()
    assert len(convert_vqa(root, normalise, soft_scores)) == 2
    assert {path: path.read_bytes() for path in written} == contents


def test_an_interrupted_conversion_is_completed(root, monkeypatch):
    def interrupted(answers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_vqa(root, normalise, interrupted)
    assert len(convert_vqa(root, normalise, soft_scores)) == 7


def test_published_label_files_decide_the_classes(root):
    (root / "vqa").mkdir()
    (root / "vqa" / "trainval_label2ans.json").write_text('["bird"]')
    (root / "vqa" / "trainval_ans2label.json").write_text('{"bird": 0}')
    convert_vqa(root, normalise, soft_scores)
    assert all(row["label"] == {"bird": 0.3} for row in rows(root, "train"))


def test_a_rare_answer_is_no_class(tmp_path):
    write_official(tmp_path, "train2014", 1, 16)
    write_official(tmp_path, "val2014", 101, 1)
    convert_vqa(tmp_path, normalise, soft_scores)
    assert read_label_vocab(tmp_path / "vqa") == ["2 dogs"]  # agreed for 9 questions; cat for 8


def test_too_few_questions_for_any_class_is_an_error(tmp_path):
    write_official(tmp_path, "train2014", 1, 2)
    write_official(tmp_path, "val2014", 101, 2)
    with pytest.raises(DataError, match="most common one of 9 questions"):
        convert_vqa(tmp_path, normalise, soft_scores)


def test_test_questions_have_no_label(tmp_path):
    write_official(tmp_path, "test2015", 1, 2)
    assert len(convert_vqa_test(tmp_path)) == 1
    assert rows(tmp_path, "test")[1] == {
        "question_id": 20,
        "img_id": "COCO_test2015_000000000002",
        "sent": "What is in 2?",
    }


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda content: content["annotations"].pop(), "not about the questions of train2014"),
        (lambda content: content.pop("annotations"), "without the key 'annotations'"),
        (lambda content: content["annotations"][0].update(answers=[1]), "official form"),
    ],
)
def test_annotations_of_another_form_are_named(root, change, words):
    path = root / "official" / "v2_mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=words) as caught:
        convert_vqa(root, normalise, soft_scores)
    assert str(path) in str(caught.value)


def test_a_download_cut_short_is_named_with_its_line(root):
    path = root / "official" / "v2_mscoco_val2014_annotations.json"
    path.write_text(path.read_text()[:1000])
    with pytest.raises(DataError, match=r"val2014_annotations.json:1: .*fetch it again"):
        convert_vqa(root, normalise, soft_scores)


def test_ids_are_the_same_as_numbers_and_as_texts_and_none_is_there_twice(root):
    path = root / "official" / "v2_mscoco_train2014_annotations.json"
    content = json.loads(path.read_text())
    for row in content["annotations"]:
        row["question_id"] = str(row["question_id"])
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
    convert_vqa(root, normalise, soft_scores)
    first = rows(root, "train")[0]
    assert first["question_id"] == 10 and first["label"] == {"2 dogs": 1.0, "cat": 0.9}
    path = root / "official" / "v2_OpenEnded_mscoco_test2015_questions.json"
    questions = [{"question_id": number, "image_id": 1, "question": "Who?"} for number in (1, "1")]
    path.write_text(json.dumps({"questions": questions}))
    with pytest.raises(DataError, match=r"test2015_questions\.json .*the question id 1 occurs twice"):
        convert_vqa_test(root)
