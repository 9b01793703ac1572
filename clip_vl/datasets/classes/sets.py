"""Classification sets of all forms -> `ClassSet`: image folders, tables, ELEVATER, torchvision, built-in scenes."""

import re
from pathlib import Path

import numpy as np

from clip_vl.datasets.captions.folders import class_names, read_class_folders, warn_of_order
from clip_vl.datasets.classes.class_set import ClassSet, FolderReader, check_same_classes, checked_path, held_out
from clip_vl.datasets.classes.elevater import open_elevater
from clip_vl.datasets.classes.names import benchmark_key, metric_of, named, read_list
from clip_vl.datasets.classes.scenes import open_scenes
from clip_vl.datasets.classes.torchvision import open_torchvision
from clip_vl.datasets.images.files import is_hidden
from clip_vl.datasets.storage.left_out import report_left_out
from clip_vl.datasets.storage.tables import MISSING, column_of, read_header, table_rows
from clip_vl.engine.errors import DataError, UserError

OPENERS = {"elevater": open_elevater, "torchvision": open_torchvision}
VALIDATION = ("val", "valid", "validation")
NUMBER, NO_CLASS = re.compile(r"\d{1,9}(\.0*)?"), re.compile(r"-1(\.0*)?")  # as pandas writes class numbers


def key_of(args):
    """What benchmarks call the data set of the flags."""
    return args.benchmark_key or benchmark_key(Path(args.dataset.rpartition(":")[2].replace("{split}", "")).stem)


def open_class_set(args, split):
    """The images of one split of --dataset."""
    if not args.dataset:
        raise UserError("--dataset is missing: it names the images and their classes")
    scheme, colon, name = args.dataset.partition(":")
    if colon and scheme in OPENERS:
        found = OPENERS[scheme](name, split, args)
    elif args.dataset.endswith((".csv", ".tsv")):
        return _judged(_open_table(Path(args.dataset.replace("{split}", split)), split, args), args)
    elif (Path(args.dataset) / "shapes.json").is_file():
        found = open_scenes(Path(args.dataset), split)
    else:
        found = _open_folder(Path(args.dataset), split, metric_of(key_of(args)), args.classnames)
    if args.classnames:
        found.class_names = named(found.class_names, args.classnames, key_of(args), found.title)
    return _judged(found, args)


def _judged(found, args):
    """The set with the metric of the flags, which must fit it."""
    found.metric = args.metric or found.metric
    if (found.metric == "mAP11") != found.multi_label:
        several = "several classes" if found.multi_label else "one class"
        raise UserError(f"{found.title} has {several} an image: --metric {found.metric} does not fit it")
    if found.metric == "auc" and len(found.class_names) != 2:
        raise UserError(f"--metric auc is of two classes, and {found.title} has {len(found.class_names)}")
    return found


def open_training(args, test):
    """(training images, validation images or None): --valid_split, or a split for validation where there is one.

    Raises DataError where the splits have different classes, UserError where one is learnt from and judged.
    """
    train = open_class_set(args, args.train_split)
    if test.multi_label:
        raise UserError(f"{test.title} has several classes an image; only zero_shot judges such sets")
    valid = _open_valid(args)
    check_same_classes(train, test)
    if valid is not None:
        check_same_classes(valid, test)
        check_same_classes(valid, train)
    return train, valid


def _open_valid(args):
    if args.valid_split:
        return open_class_set(args, args.valid_split)
    for split in VALIDATION:
        if split not in (args.train_split, args.test_split):
            try:
                return open_class_set(args, split)
            except UserError:  # there is no such split
                continue
    return None


def training_rows(train, seed):
    """(rows to learn from, rows to choose by) of a training set without a validation split."""
    chosen = held_out(train.labels, seed)
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


# ---- image folders


def _open_folder(folder, split, metric, classnames):
    if not folder.is_dir():
        raise UserError(
            f"--dataset {folder} is neither a folder, a .csv or .tsv file, elevater:NAME nor torchvision:NAME"
        )
    root = folder / split
    if not root.is_dir():
        found = sorted(path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))
        raise UserError(f"{folder} has no folder {split!r} for the split; it has {', '.join(found[:8]) or 'none'} "
                        "('.' stands for the folder itself)")  # fmt: skip
    classes = read_class_folders(root)
    ids = [f"{name}/{image}" for name, found in classes.items() for image in found]
    labels = [label for label, found in enumerate(classes.values()) for _ in found]
    names, reader = class_names(root, list(classes)), FolderReader(root)
    if classnames and names == [name.replace("_", " ") for name in classes]:
        warn_of_order(classnames, list(classes))
    return ClassSet(f"{folder} {split}", ids, reader, labels, names, reader.content(ids), metric)


# ---- tables


def _open_table(path, split, args):
    """Rows of a table; classes are numbers, or names: sorted, or in the order of --classnames."""
    rows = _table_rows(path, split, args)
    root = Path(args.images_dir or path.parent)
    names = [checked_path(f"{path}:{line}", root, name) for line, name, _, _ in rows]
    texts, wanted = [text for *_, text, _ in rows], [mine for *_, mine in rows]
    given = read_list(args.classnames, key_of(args), "class names") if args.classnames else None
    if all(NUMBER.fullmatch(text) for text in texts):
        labels = [int(float(text)) for text in texts]
        given = given or [str(label) for label in range(max(labels) + 1)]
    else:
        given = given or sorted(set(texts))
        unknown = next((row for row in rows if row[2] not in given), None)
        if unknown:
            raise DataError(f"{path}:{unknown[0]}: the class {unknown[2]!r:.60} is not one of {args.classnames}")
        labels = [given.index(text) for text in texts]
    chosen = [place for place, mine in enumerate(wanted) if mine]
    names, labels = [names[i] for i in chosen], [labels[i] for i in chosen]
    reader = FolderReader(root)
    title, metric = f"{path} {split}", metric_of(key_of(args))
    return ClassSet(title, names, reader, labels, given, reader.content(names), metric)


def _table_rows(path, split, args):
    """[(line, path of the image, class, whether it is of the split)] of all rows, so that all splits name one order."""
    separator, columns = read_header(path, args.csv_separator, {args.csv_img_key, args.csv_label_key})
    image, label = (column_of(path, columns, getattr(args, name), name) for name in ("csv_img_key", "csv_label_key"))
    own = "{split}" not in args.dataset
    of_split = column_of(path, columns, args.csv_split_key, "csv_split_key") if own else None
    rows, without = [], []
    for line, row in table_rows(path, separator):
        if row[label].strip() in MISSING or NO_CLASS.fullmatch(row[label].strip()):
            without.append(f"{path}:{line}")
            continue
        mine = of_split is None or row[of_split].strip() == split
        rows.append((line, row[image], row[label].strip(), mine))
    if without:
        report_left_out(path, {"no class": (len(without), without[0])}, len(rows), args.max_left_out, "rows")
    if not any(mine for *_, mine in rows):
        raise UserError(f"{path} has no row of the split {split!r}")
    return rows
