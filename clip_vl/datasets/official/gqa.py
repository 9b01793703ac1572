"""Converts GQA's official balanced questions to gqa/{train,valid,testdev,submit}.json and the label files."""

from pathlib import Path

from tqdm import tqdm

from clip_vl.datasets.official.files import expected_form, official_path, text_of, write_label_tables, write_list
from clip_vl.datasets.storage.json_stream import iterate_json_list, iterate_json_object
from clip_vl.engine.errors import DataError
from clip_vl.engine.readers.text import id_of

OFFICIAL_NAMES = {
    "train": "train_balanced_questions",
    "valid": "val_balanced_questions",
    "testdev": "testdev_balanced_questions",
    "submit": "submission_all_questions",  # the server scores its balanced questions of test-std and challenge
}


def convert_gqa(root, splits=("train", "valid", "testdev")):
    """The official files of `splits` -> gqa/<split>.json and the label files; returns paths written.

    The classes are those of gqa/trainval_label2ans.json if it exists, else the answers of train and valid in
    alphabetical order.
    """
    written = []
    for split in splits:
        written += write_list(Path(root, "gqa", f"{split}.json"), _rows(official_path(root, OFFICIAL_NAMES[split])))
    return written + write_label_tables(Path(root, "gqa"), lambda: _trainval_answers(root))


def convert_gqa_submit(root):
    """The questions of the test server, without answers -> gqa/submit.json; returns paths written."""
    return write_list(Path(root, "gqa", "submit.json"), _rows(official_path(root, OFFICIAL_NAMES["submit"])))


def _rows(path):
    """Rows in LXMERT's form: question_type is the structural type, answer_type the semantic type."""
    for line, question_id, entry in tqdm(iterate_json_object(path), path.stem, unit="question", disable=None):
        with expected_form(f"{path}:{line}: question {question_id!r:.40}"):
            row = {"question_id": question_id, "img_id": id_of(entry["imageId"]), "sent": text_of(entry, "question")}
            if "answer" in entry:
                types = entry["types"]
                row |= {"question_type": text_of(types, "structural"), "answer_type": text_of(types, "semantic")}
                row["label"] = {text_of(entry, "answer"): 1.0}
        yield row


def _trainval_answers(root):
    answers = set()
    for split in ("train", "valid"):
        path = Path(root, "gqa", f"{split}.json")
        with expected_form(path):
            for _, row in iterate_json_list(path):
                answers.update(row["label"])
    if not answers:
        raise DataError(f"the questions of {root}/gqa/train.json and valid.json have no answers to define classes")
    return sorted(answers)
