"""Classification sets of all forms -> `ClassSet`: image folders, tables, ELEVATER, torchvision, built-in scenes."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clip_vl.datasets.classes.class_set import check_same_classes, held_out
from clip_vl.datasets.classes.names import benchmark_key, metric_of, named
from clip_vl.engine.errors import UserError

VALIDATION = ("val", "valid", "validation")


@dataclass(frozen=True)
class TableColumns:
    """Names of the columns of a table of images; separator: None to find it out."""

    image: str = "filepath"
    label: str = "label"
    split: str = "split"
    separator: str | None = None


@dataclass(frozen=True)
class ClassSource:
    """Where a classification set is and how it is read.

    dataset:       an image folder, a table, a data root of the built-in scenes, elevater:NAME or torchvision:NAME
    datasets_dir:  folder of ELEVATER's and torchvision's files
    classnames:    file of class names, instead of the dataset's own
    key:           name of the dataset in JSON files of benchmarks [from `dataset`]
    metric:        accuracy, mean_per_class, mAP11 or auc [the published one]
    images_dir:    folder of the images of a table [the table's own]
    max_left_out:  largest share of a table's rows without a class
    metadata:      ELEVATER's vision_datasets.json [<datasets_dir>/vision_datasets.json]
    """

    dataset: str
    datasets_dir: str = "data"
    classnames: str | None = None
    key: str | None = None
    metric: str | None = None
    images_dir: str | None = None
    columns: TableColumns = TableColumns()
    max_left_out: float = 0.5
    metadata: str | None = None

    @property
    def benchmark_key(self):
        """What benchmarks call the dataset."""
        return self.key or benchmark_key(Path(self.dataset.rpartition(":")[2].replace("{split}", "")).stem)


def open_class_set(source, split):
    """The images of one split of a `ClassSource`."""
    if not source.dataset:
        raise UserError("--dataset is missing: it names the images and their classes")
    found = _open(source, split)
    if source.classnames and not _is_table(source):
        found.class_names = named(found.class_names, source.classnames, source.benchmark_key, found.title)
    found.metric = source.metric or found.metric
    _check_metric(found)
    return found


def _is_table(source):
    return source.dataset.endswith((".csv", ".tsv")) and not source.dataset.startswith(("elevater:", "torchvision:"))


def _open(source, split):
    scheme, _, name = source.dataset.partition(":")
    if scheme == "elevater" and name:
        from clip_vl.datasets.classes.elevater import open_elevater

        return open_elevater(name, split, source.datasets_dir, source.metadata)
    if scheme == "torchvision" and name:
        from clip_vl.datasets.classes.torchvision import open_torchvision

        return open_torchvision(name, split, source.datasets_dir)
    if _is_table(source):
        from clip_vl.datasets.classes.table import open_class_table

        return open_class_table(source, split)
    if (Path(source.dataset) / "shapes.json").is_file():
        from clip_vl.datasets.classes.scenes import open_scenes

        return open_scenes(Path(source.dataset), split)
    from clip_vl.datasets.classes.folder import open_class_folder

    return open_class_folder(Path(source.dataset), split, metric_of(source.benchmark_key), source.classnames)


def _check_metric(found):
    if (found.metric == "mAP11") != found.multi_label:
        several = "several classes" if found.multi_label else "one class"
        raise UserError(f"{found.title} has {several} an image: --metric {found.metric} does not fit it")
    if found.metric == "auc" and len(found.class_names) != 2:
        raise UserError(f"--metric auc needs two classes, and {found.title} has {len(found.class_names)}")


def open_training(source, split, test):
    """The images of a training split. Raises DataError where its classes are not those of `test`, the test images, and
    UserError where both are the same images.
    """
    train = open_class_set(source, split)
    if test.multi_label:
        raise UserError(f"{test.title} has several classes an image; only zero_shot evaluates such datasets")
    check_same_classes(train, test)
    return train


def open_validation(source, split, others):
    """The images of a validation split, or without a name of the first of VALIDATION that there is, or None.

    others: {name of a split: its images}, of the same classes and without the same images
    """
    valid = _open_valid(source, split, others)
    for images in others.values() if valid is not None else ():
        check_same_classes(valid, images)
    return valid


def _open_valid(source, split, taken):
    if split:
        return open_class_set(source, split)
    for split in VALIDATION:
        if split not in taken:
            try:
                return open_class_set(source, split)
            except UserError:  # there is no such split
                continue
    return None


def training_rows(train, seed):
    """(rows to fit on, rows to choose by) of a training set without a validation split."""
    chosen = held_out(train.labels, seed)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
