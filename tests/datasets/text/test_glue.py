"""GLUE's files: the official layouts by name and by position, hub folders, labels, what is left out, submissions."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from clip_vl.datasets.text.glue import TASKS, find_split, read_file, read_glue, submission
from clip_vl.engine.errors import DataError, UserError

REAL = Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data"))
real = pytest.mark.skipif(not (REAL / "glue").is_dir(), reason="CLIP_VL_REAL_DATA has no glue/")
REAL_FILES = {  # rows, share of label 1 or mean score
    "glue/CoLA/in_domain_dev.tsv": ("cola", 527, (3,), 1, None),
    "glue/CoLA/in_domain_train_first2000.tsv": ("cola", 2000, (3,), 1, None),
    "glue/RTE/dev.tsv": ("rte", 139, (1, 2), 3, ["entailment", "not_entailment"]),
    "glue/WNLI/train.tsv": ("wnli", 565, (1, 2), 3, None),
    "glue/SST-2/dev_first436.tsv": ("sst2", 436, (0,), 1, None),
    "glue/STS-B/dev_part1248.tsv": ("stsb", 1248, (7, 8), 9, None),
    "glue/STS-B/sts-test.tsv": ("stsb", 1379, (5, 6), 4, None),
    "mrpc/msr-para-train.tsv": ("mrpc", 3576, (3, 4), 0, None),
    "mrpc/msr-para-test.tsv": ("mrpc", 1725, (3, 4), 0, None),
}


def write(path, *lines, ending="\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(ending.join(lines) + ending, encoding="utf-8", newline="")
    return path


@real
@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_are_read_as_the_csv_module_reads_them(name):
    task, count, texts, label, names = REAL_FILES[name]
    split = read_file(REAL / name, TASKS[task])
    with (REAL / name).open(encoding="utf-8-sig", newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    rows = rows[-count:]
    assert (len(split), split.left_out) == (count, 0)
    assert split.first == [row[texts[0]].strip() for row in rows]
    assert split.second == ([row[texts[1]].strip() for row in rows] if len(texts) > 1 else None)
    values = [names.index(row[label]) if names else float(row[label]) for row in rows]
    np.testing.assert_allclose(split.labels, values, rtol=1e-6)


@real
def test_splits_of_a_folder_are_found():
    assert len(read_glue(REAL / "glue", "rte", "train")) == 1244
    assert len(read_glue(REAL / "glue", "cola", "dev")) == 527
    assert find_split(REAL / "mrpc", "mrpc", "dev").name == "msr-para-val.tsv"
    assert len(read_glue(REAL / "glue" / "WNLI", "wnli", "dev")) == 70


def test_quotation_marks_are_text_and_rows_without_a_column_are_counted(tmp_path):
    path = write(tmp_path / "QQP" / "train.tsv", "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate",
                 '0\t1\t2\t"What is it?\tWhat?\t1', "broken", '1\t3\t4\ta "b" c\td\t0')  # fmt: skip
    split = read_glue(tmp_path, "qqp", "train")
    assert split.first == ['"What is it?', 'a "b" c'] and split.labels.tolist() == [1, 0] and split.left_out == 1
    write(path, "id\tquestion1\tquestion2", "0\ta\tb")
    with pytest.raises(DataError, match="is_duplicate are needed"):
        read_glue(tmp_path, "qqp", "train")


def test_mnli_has_three_labels_and_two_dev_sets_and_no_row_without_a_gold_label(tmp_path):
    header = "index\tsentence1\tsentence2\tlabel1\tgold_label"
    rows = ["0\ta\tb\tneutral\tcontradiction", "1\tc\td\tneutral\t-", "2\te\tf\tneutral\tentailment"]
    write(tmp_path / "MNLI" / "dev_mismatched.tsv", header, *rows)
    split = read_glue(tmp_path, "mnli", "dev_mismatched")
    assert split.labels.tolist() == [2, 0] and split.left_out == 1
    with pytest.raises(UserError, match=r"looked for dev_matched\.tsv and validation_matched\.parquet"):
        read_glue(tmp_path, "mnli", "dev_matched")


def test_a_test_split_has_no_labels_and_becomes_a_submission(tmp_path):
    write(tmp_path / "RTE" / "test.tsv", "index\tsentence1\tsentence2", "0\ta\tb", "1\tc\td")
    split = read_glue(tmp_path, "rte", "test")
    assert split.labels is None and split.second == ["b", "d"]
    assert submission("rte", "test", [1, 0]) == ("RTE.tsv", "index\tprediction\n0\tnot_entailment\n1\tentailment\n")
    assert submission("stsb", "test", [5.2, 1.25])[1].splitlines()[1:] == ["0\t5.000", "1\t1.250"]
    assert submission("mnli", "test_mismatched", [1])[0] == "MNLI-mm.tsv"


def test_folders_of_the_hub_are_read(tmp_path):
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "mrpc").mkdir()
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 0], "idx": [0, 1]}
    parquet.write_table(pyarrow.table(columns), tmp_path / "mrpc" / "validation-00000-of-00001.parquet")
    parquet.write_table(pyarrow.table(columns | {"label": [-1, -1]}), tmp_path / "mrpc" / "test-00000-of-00001.parquet")
    split = read_glue(tmp_path, "mrpc", "dev")
    assert (split.first, split.second, split.labels.tolist()) == (["a", "b"], ["c", "d"], [1, 0])
    assert read_glue(tmp_path, "mrpc", "test").labels is None


@pytest.mark.parametrize("value, task", [("2", "rte"), ("maybe", "rte"), ("x", "stsb"), ("nan", "stsb")])
def test_a_wrong_label_is_named_with_its_line(tmp_path, value, task):
    label = {"rte": "label", "stsb": "score"}[task]
    path = write(tmp_path / "train.tsv", f"index\tsentence1\tsentence2\t{label}", f"0\ta\tb\t{value}")
    with pytest.raises(DataError, match=r"train\.tsv, line 2: '" + value):
        read_file(path, TASKS[task])
