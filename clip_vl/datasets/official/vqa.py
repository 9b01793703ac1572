"""Converts official VQA v2 questions and annotations to vqa/{train,nominival,minival,test}.json and the label files.

Existing files are kept, so that a repeat continues. The full VQA v2 takes 2.5 GB of memory.
"""

import functools
from collections import Counter
from pathlib import Path

from tqdm import tqdm

from clip_vl.datasets.lxmert.answers import read_label_vocab
from clip_vl.datasets.official.files import (
    coco_image_id,
    expected_form,
    minival_rule,
    official_path,
    read_official,
    text_of,
    write_label_tables,
    write_list,
    write_value,
)
from clip_vl.engine.errors import DataError
from clip_vl.engine.readers.text import id_of

LABEL_OCCURRENCES = 9  # an answer is a class if it is the most common one of at least this many questions


def convert_vqa(root, normalise, soft_scores):
    """train2014 and val2014 -> the three labelled splits, the label files, and the official pair of minival.

    normalise:   answer -> the form that the official evaluator compares
    soft_scores: the ten (normalised) answers of a question -> {answer: score}
    returns:     paths written
    """
    normalise = functools.cache(normalise)  # 6.6 million answers, most of them "yes", "no" and such
    is_minival = minival_rule(root)
    agreed = Counter()
    splits = {"train": _labelled_rows(root, "train2014", normalise, soft_scores, agreed)}
    val = _labelled_rows(root, "val2014", normalise, soft_scores, agreed)
    splits["nominival"] = [row for row in val if not is_minival(row["img_id"])]
    splits["minival"] = [row for row in val if is_minival(row["img_id"])]
    written = write_label_tables(Path(root, "vqa"), lambda: _frequent(agreed, root))
    classes = set(read_label_vocab(Path(root, "vqa")))
    for name, rows in splits.items():
        for row in rows:
            row["label"] = {answer: score for answer, score in row["label"].items() if answer in classes}
        written += write_list(Path(root, "vqa", f"{name}.json"), rows)
    return written + _write_official_minival(root, {id_of(row["question_id"]) for row in splits["minival"]})


def convert_vqa_test(root):
    """test2015 questions -> vqa/test.json, which has no labels; returns paths written."""
    return write_list(Path(root, "vqa", "test.json"), list(_questions(root, "test2015").values()))


def _questions(root, split):
    """Rows by question id, in the form of `id_of`: question_id, img_id, sent."""
    path = official_path(root, f"v2_OpenEnded_mscoco_{split}_questions")
    rows = {}
    with expected_form(path):
        for question in read_official(path)["questions"]:
            number = id_of(question["question_id"])
            if number in rows:
                raise ValueError(f"the question id {number} occurs twice")
            rows[number] = {
                "question_id": question["question_id"],
                "img_id": coco_image_id(split, int(id_of(question["image_id"]))),
                "sent": text_of(question, "question"),
            }
    return rows


def _labelled_rows(root, split, normalise, soft_scores, agreed):
    """The questions of a split with types and all answers as label; counts the most common answers in `agreed`."""
    rows = _questions(root, split)
    path = official_path(root, f"v2_mscoco_{split}_annotations")
    with expected_form(path):
        annotations = read_official(path)["annotations"]
        ids = [id_of(annotation["question_id"]) for annotation in annotations]
        if len(set(ids)) < len(ids):
            raise ValueError("a question id occurs twice")
        if set(ids) != rows.keys():
            raise DataError(f"{path} is not about the questions of {split}; both files must be of the same release")
        for annotation in tqdm(annotations, f"vqa {split}", unit="question", disable=None):
            agreed[normalise(annotation["multiple_choice_answer"])] += 1
            rows[id_of(annotation["question_id"])] |= {
                "question_type": annotation["question_type"],
                "answer_type": annotation["answer_type"],
                "label": soft_scores([normalise(given["answer"]) for given in annotation["answers"]]),
            }
    return list(rows.values())


def _frequent(agreed, root):
    """The answers with at least LABEL_OCCURRENCES questions, in alphabetical order."""
    answers = sorted(answer for answer, count in agreed.items() if count >= LABEL_OCCURRENCES)
    if not answers:
        raise DataError(f"no answer in {root}/official is the most common one of {LABEL_OCCURRENCES} questions")
    return answers


def _write_official_minival(root, question_ids):
    """Write the official questions and annotations of minival, for the official evaluator."""
    written = []
    for form, key in (("v2_OpenEnded_mscoco_{}_questions", "questions"), ("v2_mscoco_{}_annotations", "annotations")):
        path = Path(root, "vqa", f"{form.format('minival2014')}.json")
        if not path.exists():
            content = read_official(official_path(root, form.format("val2014")))
            content["data_subtype"] = "minival2014"
            content[key] = [row for row in content[key] if id_of(row["question_id"]) in question_ids]
            written += write_value(path, content)
    return written
