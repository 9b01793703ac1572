"""GLUE (arXiv:1804.07461): its nine tasks, read from the official TSV files or from folders of the Hugging Face hub."""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_vl.engine.errors import DataError, UserError


@dataclass(frozen=True)
class GlueTask:
    """A task and the published fine-tuning defaults.

    columns: names of the text columns in the official files;  hub: those on the hub, where they differ
    labels:  class names in the order of their numbers; () for the regression task
    places:  columns of files without a header, (texts..., label)
    metric:  the headline score;  evaluated: the splits that are scored
    """

    folder: str
    columns: tuple
    label: str
    labels: tuple
    metric: str
    lr: float
    batch_size: int
    epochs: int
    hub: tuple = ()
    places: tuple = ()
    evaluated: tuple = ("dev",)

    @property
    def classes(self):
        """Width of the head."""
        return len(self.labels) or 1


BINARY, ENTAILMENT = ("0", "1"), ("entailment", "not_entailment")
TASKS = {
    "cola": GlueTask("CoLA", ("sentence",), "label", BINARY, "matthews", 1e-5, 16, 20, places=(3, 1)),
    "sst2": GlueTask("SST-2", ("sentence",), "label", BINARY, "accuracy", 2e-5, 32, 10),
    "mrpc": GlueTask("MRPC", ("#1 String", "#2 String"), "Quality", BINARY, "f1", 2e-5, 16, 20,
                     hub=("sentence1", "sentence2")),
    "qqp": GlueTask("QQP", ("question1", "question2"), "is_duplicate", BINARY, "f1", 2e-5, 128, 10),
    "stsb": GlueTask("STS-B", ("sentence1", "sentence2"), "score", (), "spearman", 4e-5, 16, 20, places=(5, 6, 4)),
    "mnli": GlueTask("MNLI", ("sentence1", "sentence2"), "gold_label", ("entailment", "neutral", "contradiction"),
                     "accuracy", 2e-5, 64, 10, hub=("premise", "hypothesis"),
                     evaluated=("dev_matched", "dev_mismatched")),
    "qnli": GlueTask("QNLI", ("question", "sentence"), "label", ENTAILMENT, "accuracy", 2e-5, 32, 10),
    "rte": GlueTask("RTE", ("sentence1", "sentence2"), "label", ENTAILMENT, "accuracy", 2e-5, 16, 20),
    "wnli": GlueTask("WNLI", ("sentence1", "sentence2"), "label", BINARY, "accuracy", 1e-5, 8, 20),
}  # fmt: skip
FILES = {  # file names without their ending that may hold a split; the hub calls dev "validation"
    "train": ("train", "in_domain_train", "msr_paraphrase_train", "msr-para-train", "msr_para_train"),
    "dev": ("dev", "validation", "in_domain_dev", "msr-para-val", "msr_para_val", "msr_paraphrase_test"),
    "dev_matched": ("dev_matched", "validation_matched"),
    "dev_mismatched": ("dev_mismatched", "validation_mismatched"),
    "test": ("test", "msr_paraphrase_test", "msr-para-test", "sts-test"),
    "test_matched": ("test_matched",),
    "test_mismatched": ("test_mismatched",),
}


@dataclass(frozen=True)
class GlueSplit:
    """Texts and labels of a split.

    first:    list of sentences;  second: the other sentence of each pair, or None
    labels:   int64 class numbers or float32 scores (N,); None for a test split without labels
    left_out: rows of the file that lack a column or a label
    """

    first: list
    second: list | None
    labels: np.ndarray | None
    left_out: int = 0

    def __len__(self):
        return len(self.first)


def read_glue(root, task, split):
    """A `GlueSplit` of a `TASKS` name. root: the folder of all tasks, of the task, or the file itself."""
    return read_file(find_split(root, task, split), TASKS[task], labelled=not split.startswith("test"))


def find_split(root, task, split):
    """The file of a split: <root>/<task>/<name>.tsv, .txt, .parquet or the hub's <name>-00000-of-00001.parquet."""
    root = Path(root)
    if root.is_file():
        return root
    folders = [root / TASKS[task].folder, root / task, root / task.upper(), root]
    for folder in (folder for folder in folders if folder.is_dir()):
        for name in FILES[split]:
            for ending in (".tsv", ".txt", ".parquet", "-00000-of-00001.parquet"):
                if (folder / f"{name}{ending}").is_file():
                    return folder / f"{name}{ending}"
    raise UserError(f"no file of GLUE's {TASKS[task].folder}, split {split}: looked for {FILES[split][0]}.tsv and "
                    f"{FILES[split][-1]}.parquet in {', '.join(map(str, folders))}")  # fmt: skip


def read_file(path, task, labelled=True):
    """A `GlueSplit` from one file of a `GlueTask`."""
    rows, left_out = (_parquet_rows if path.suffix == ".parquet" else _tsv_rows)(path, task, labelled)
    if not rows:
        raise DataError(f"{path} has no row with {', '.join(task.columns)}" + (" and a label" if labelled else ""))
    *texts, labels = zip(*rows)
    known = all(label is not None for label in labels)
    values = np.array(labels, np.int64 if task.labels else np.float32) if known else None
    return GlueSplit(list(texts[0]), list(texts[1]) if len(texts) > 1 else None, values, left_out)


def _tsv_rows(path, task, labelled):
    """([(texts..., label or None)], rows left out). Tabs alone separate: quotation marks are text."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")  # no other character ends a line
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 text (byte {error.start:,}); fetch it again") from error
    lines = [line.rstrip("\r").split("\t") for line in lines if line.strip()]
    wanted, places, first = [*task.columns, task.label], None, 0
    if lines and all(name in lines[0] for name in task.columns):
        places, first = [lines[0].index(name) if name in lines[0] else None for name in wanted], 1
    elif task.places:
        places = list(task.places)
    if places is None or (labelled and places[-1] is None):
        raise DataError(f"{path}: the first line names the columns {lines[0] if lines else []}; "
                        f"{', '.join(wanted)} are needed")  # fmt: skip
    rows, left_out = [], 0
    for number, line in enumerate(lines[first:], first + 1):
        row = _row(line, places, task, f"{path}, line {number:,}")
        left_out += row is None
        rows += [row] if row else []
    return rows, left_out


def _row(line, places, task, where):
    """(texts..., label) of one line; None where a column is missing or the annotators did not agree on a label."""
    *texts, label = places
    if max(place for place in places if place is not None) >= len(line):
        return None
    value = None if label is None else line[label].strip()
    if value in ("-", ""):
        return None
    return (*(line[place].strip() for place in texts), None if value is None else _label(value, task, where))


def _label(value, task, where):
    if not task.labels:
        if not re.fullmatch(r"\d+(\.\d+)?", value):
            raise DataError(f"{where}: {value[:40]!r} is not a score from 0 to 5")
        return float(value)
    if value in task.labels:
        return task.labels.index(value)
    if value.isdecimal() and int(value) < len(task.labels):
        return int(value)
    raise DataError(f"{where}: {value[:40]!r} is not a label; one of {', '.join(task.labels)} is needed")


def _parquet_rows(path, task, labelled):
    """The same from a file of the hub, whose test splits have the label -1."""
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is not a whole parquet file ({str(error).partition(chr(10))[0]})") from error
    there = set(table.column_names)
    columns = next((names for names in (task.hub, task.columns) if names and there.issuperset(names)), None)
    if columns is None:
        needed = ", ".join(task.hub or task.columns)
        raise DataError(f"{path} has the columns {table.column_names}; {needed} are needed")
    texts = [table[name].to_pylist() for name in columns]
    name = "label" if "label" in table.column_names else task.label
    labels = table[name].to_pylist() if name in table.column_names else [None] * len(texts[0])
    labels = [None if not labelled and label == -1 else label for label in labels]
    whole = [None not in row[:-1] and not (labelled and row[-1] in (None, -1)) for row in zip(*texts, labels)]
    return [row for row, good in zip(zip(*texts, labels), whole) if good], len(whole) - sum(whole)


SUBMISSIONS = {"mnli": {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm"}}


def submission(task, split, predictions):
    """(file name, text) that the GLUE server takes. predictions: class numbers or scores (N,)."""
    spec = TASKS[task]
    name = SUBMISSIONS.get(task, {}).get(split, spec.folder)
    if spec.labels:
        values = [spec.labels[int(value)] for value in predictions]
    else:
        values = [f"{min(5.0, max(0.0, float(value))):.3f}" for value in predictions]
    rows = [f"{index}\t{value}" for index, value in enumerate(values)]
    return f"{name}.tsv", "\n".join(["index\tprediction", *rows, ""])
