"""COCO, Visual Genome, GQA and VQA files -> pre-training files, on a handful of images with every kind of sentence."""

import json

import pytest

from clip_vl.datasets.lxmert.answers import AnswerTable
from clip_vl.datasets.official import lxmert as module
from clip_vl.datasets.official.lxmert import FILES, build_answer_table, convert_lxmert
from clip_vl.datasets.storage.json_stream import iterate_json_list
from clip_vl.engine.errors import DataError

TRAIN, VAL = "COCO_train2014_000000000001", "COCO_val2014_000000000002"
MINIVAL = "COCO_val2014_000000000003"


@pytest.fixture
def root(tmp_path):
    """VG image 10 is COCO's 1 and 30 its 3; 20 is not in COCO, and 40 says it is one that has no captions."""
    captions = [{"image_id": 1, "caption": "A dog. "}, {"image_id": 1, "caption": "Dogs"}]
    official = {
        "captions_train2014": {"annotations": captions},
        "captions_val2014": {"annotations": [{"image_id": i, "caption": f"Caption {i}"} for i in (2, 3)]},
        "image_data": [{"image_id": i, "coco_id": c} for i, c in ((10, 1), (20, None), (30, 3), (40, 999))],
        "region_descriptions": [
            {"id": 10, "regions": [{"phrase": "a red cushion"}, {"phrase": "  "}]},
            {"id": 20, "regions": [{"phrase": "a tree"}]},
            {"id": 40, "regions": [{"phrase": "a wall"}]},
        ],
        "question_answers": [
            {"id": 10, "qas": [{"question": "What color?", "answer": "Red."}]},
            {"id": 30, "qas": [{"question": "Who?", "answer": "A man."}]},
        ],
        "train_balanced_questions": {
            "01": {"imageId": "20", "question": "Is it tall?", "answer": "yes", "semantic": [{"operation": "select"}]},
            "02": {"imageId": "n7", "question": "Is it flat?", "answer": "no", "annotations": {"answer": {}}},
        },
    }
    vqa = {
        "train": [{"img_id": TRAIN, "sent": "How many dogs?", "label": {"2": 1.0, "3": 0.3}}],
        "nominival": [{"img_id": VAL, "sent": "Is it day?", "label": {}}],
        "minival": [{"img_id": MINIVAL, "sent": "Is it night?", "label": {"no": 1.0}}],
    }
    for folder, files in (("official", official), ("vqa", vqa)):
        (tmp_path / folder).mkdir()
        for name, content in files.items():
            (tmp_path / folder / f"{name}.json").write_text(json.dumps(content))
    return tmp_path


def entries(root, name):
    return {entry["img_id"]: entry for _, entry in iterate_json_list(root / "lxmert" / f"{name}.json")}


def test_every_sentence_is_filed_under_its_image_with_aligned_labels(root):
    assert [path.stem for path in convert_lxmert(root)] == list(FILES)
    assert entries(root, "mscoco_train") == {
        TRAIN: {
            "img_id": TRAIN,
            "sentf": {
                "mscoco": ["A dog.", "Dogs"],
                "vg": ["a red cushion"],
                "visual7w": ["What color?"],
                "vqa": ["How many dogs?"],
            },
            "labelf": {"visual7w": [{"Red.": 1.0}], "vqa": [{"2": 1.0, "3": 0.3}]},
        }
    }


def test_val_follows_the_minival_list_and_what_coco_lacks_stays_visual_genome(root):
    convert_lxmert(root)
    assert list(entries(root, "mscoco_nominival")) == [VAL]
    minival = entries(root, "mscoco_minival")
    assert list(minival) == [MINIVAL] and minival[MINIVAL]["sentf"]["visual7w"] == ["Who?"]
    others = entries(root, "vgnococo")
    assert set(others) == {"20", "40", "n7"}
    assert others["20"]["sentf"] == {"vg": ["a tree"], "gqa": ["Is it tall?"]}
    assert others["20"]["labelf"] == {"gqa": [{"yes": 1.0}]}


def test_gqa_may_be_missing(root):
    (root / "official" / "train_balanced_questions.json").unlink()
    convert_lxmert(root)
    assert set(entries(root, "vgnococo")) == {"20", "40"}


def test_files_that_exist_are_kept_and_an_interrupted_conversion_is_completed(root, monkeypatch):
    write, calls = module.write_list, []

    def interrupted(path, rows):
        calls.append(path)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return write(path, rows)

    monkeypatch.setattr(module, "write_list", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_lxmert(root)
    monkeypatch.setattr(module, "write_list", write)
    assert [path.stem for path in convert_lxmert(root)] == ["mscoco_minival", "vgnococo"]
    assert convert_lxmert(root) == []
    assert not list((root / "lxmert").glob(".*"))


def test_the_answer_table_holds_the_frequent_training_answers_in_order(root):
    convert_lxmert(root)
    assert build_answer_table(root) == [root / "lxmert" / "all_ans.json"]
    table = AnswerTable(root / "lxmert" / "all_ans.json")
    assert table.answers == ["2", "3", "no", "red", "yes"]  # "man" and the "no" of vqa are minival's alone
    rows = {row["ans"]: row["dsets"] for _, row in iterate_json_list(root / "lxmert" / "all_ans.json")}
    assert rows["no"] == ["gqa"] and rows["red"] == ["visual7w"] and rows["2"] == ["vqa"]


def test_the_answer_table_keeps_the_most_frequent(root, monkeypatch):
    labels = [{"the a x": 1.0, "": 1.0}, {"b": 1.0, "B.": 0.3}, {"b": 1.0}, {"a": 1.0}, {"c": 1.0}, {"d": 1.0}]
    (root / "lxmert").mkdir()
    for name in FILES:
        content = [{"img_id": "1", "sentf": {}, "labelf": {"vqa": labels if name == "vgnococo" else []}}]
        (root / "lxmert" / f"{name}.json").write_text(json.dumps(content))
    monkeypatch.setattr(module, "TABLE_SIZE", 3)
    build_answer_table(root)
    # "the a x" becomes "a x", which no label ever reaches; of a, c and d, named once each, d is one too many
    assert AnswerTable(root / "lxmert" / "all_ans.json").answers == ["a", "b", "c"]


def test_a_file_of_another_form_is_named(root):
    (root / "official" / "region_descriptions.json").write_text('[{"id": 10}]')
    with pytest.raises(DataError, match=r"region_descriptions.json has an entry without the key 'regions'"):
        convert_lxmert(root)
