"""A table of images and their classes as a classification set."""

import re
from pathlib import Path

from clip_vl.datasets.classes.class_set import ClassSet, FolderReader, checked_path
from clip_vl.datasets.classes.names import metric_of, read_list
from clip_vl.datasets.storage.left_out import report_left_out
from clip_vl.datasets.storage.tables import MISSING, column_of, read_header, table_rows
from clip_vl.engine.errors import DataError, UserError

NUMBER, NO_CLASS = re.compile(r"\d{1,9}(\.0*)?"), re.compile(r"-1(\.0*)?")  # as pandas writes class numbers


def open_class_table(source, split):
    """The rows of a split of a `ClassSource` that names a table.

    Classes are numbers, or names: sorted, or in the order of the file of class names.
    """
    path = Path(source.dataset.replace("{split}", split))
    rows = _table_rows(path, split, source)
    root = Path(source.images_dir or path.parent)
    names = [checked_path(f"{path}:{line}", root, name) for line, name, _, _ in rows]
    texts, wanted = [text for *_, text, _ in rows], [mine for *_, mine in rows]
    given = read_list(source.classnames, source.benchmark_key, "class names") if source.classnames else None
    if all(NUMBER.fullmatch(text) for text in texts):
        labels = [int(float(text)) for text in texts]
        given = given or [str(label) for label in range(max(labels) + 1)]
    else:
        given = given or sorted(set(texts))
        unknown = next((row for row in rows if row[2] not in given), None)
        if unknown:
            raise DataError(f"{path}:{unknown[0]}: the class {unknown[2]!r:.60} is not one of {source.classnames}")
        labels = [given.index(text) for text in texts]
    chosen = [number for number, mine in enumerate(wanted) if mine]
    names, labels = [names[i] for i in chosen], [labels[i] for i in chosen]
    reader = FolderReader(root)
    title, metric = f"{path} {split}", metric_of(source.benchmark_key)
    return ClassSet(title, names, reader, labels, given, reader.content(names), metric)


def _table_rows(path, split, source):
    """[(line, path of the image, class, whether it is of the split)] of all rows, so that all splits name one order."""
    wanted = source.columns
    separator, columns = read_header(path, wanted.separator, {wanted.image, wanted.label})
    image = column_of(path, columns, wanted.image, "csv_img_key")
    label = column_of(path, columns, wanted.label, "csv_label_key")
    own = "{split}" not in source.dataset
    of_split = column_of(path, columns, wanted.split, "csv_split_key") if own else None
    rows, without = [], []
    for line, row in table_rows(path, separator):
        if row[label].strip() in MISSING or NO_CLASS.fullmatch(row[label].strip()):
            without.append(f"{path}:{line}")
            continue
        mine = of_split is None or row[of_split].strip() == split
        rows.append((line, row[image], row[label].strip(), mine))
    if without:
        report_left_out(path, {"no class": (len(without), without[0])}, len(rows), source.max_left_out, "rows")
    if not any(mine for *_, mine in rows):
        raise UserError(f"{path} has no row of the split {split!r}")
    return rows
