"""The table of mined negatives: NegCLIP's published TSV, and an LMDB with ids that survive subsetting.

A row has the columns <row number>, title, filepath, neg_caption (a list of captions) and neg_image (a list of row
numbers of this very file). Whoever takes a part of the rows or reorders them must renumber the neighbours: `subset`
does.
"""

import ast
import csv
import hashlib
import io
from pathlib import Path
from typing import NamedTuple

from clip_vl.datasets.storage import lmdb_files
from clip_vl.datasets.storage.tables import read_header, table_rows
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_write
from clip_vl.engine.readers.json_files import read_object

COLUMNS = ("", "title", "filepath", "neg_caption", "neg_image")
LONGEST_LIST = 100_000  # characters of a list literal; a published one has some hundreds
META_KEY, FORMAT = b"\0negatives", b"mined negatives, format 1"
IMAGES_DIR = "images_dir"  # in a report: the folder in which the paths of images begin, relative to that of the table
COMMIT_EVERY = 10_000  # rows per transaction


class NegativeRow(NamedTuple):
    """title: the caption; filepath: the image; neg_caption: hard negative captions; neg_image: rows of near images."""

    title: str
    filepath: str
    neg_caption: tuple
    neg_image: tuple


# ---- TSV ----


def write_tsv(path, rows):
    """Write the table; `path` then holds all of it, or what it held before."""
    check_rows(path, rows)
    text = io.StringIO()
    writer = csv.writer(text, delimiter="\t", lineterminator="\n")
    writer.writerow(COLUMNS)
    for number, row in enumerate(rows):
        writer.writerow([number, row.title, row.filepath, repr(list(row.neg_caption)), repr(list(row.neg_image))])
    try:
        atomic_write(path, text.getvalue().encode())
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from None


def read_tsv(path):
    """The rows of the table, checked.

    raises: UserError where it cannot be read, DataError ("file:line: ...") for what is no such table
    """
    header = read_header(path, "tab", ())[1]
    if tuple(header) != COLUMNS:
        raise DataError(f"{path}:1: the columns are {header}, not {list(COLUMNS)}")
    rows, lines = [], []
    for line, fields in table_rows(path, "\t"):
        rows.append(_parsed(path, line, len(rows), fields))
        lines.append(line)
    check_rows(path, rows, lines)
    return rows


def _parsed(path, line, number, fields):
    if fields[0] != str(number):
        raise DataError(f"{path}:{line}: row {fields[0]!r} stands where row {number} is expected: neighbours are row "
                        "numbers, so the file must not be cut or reordered")  # fmt: skip
    captions = literal_list(f"{path}:{line}: neg_caption", fields[3], str)
    return NegativeRow(fields[1], fields[2], captions, literal_list(f"{path}:{line}: neg_image", fields[4], int))


def literal_list(location, text, kind):
    """The tuple of a Python list literal of `kind`; nothing is evaluated. Raises DataError that names the location."""
    if len(text) > LONGEST_LIST:
        raise DataError(f"{location} has {len(text):,} characters; at most {LONGEST_LIST:,} are a list of negatives")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        value = None
    if not isinstance(value, list) or not all(type(item) is kind for item in value):
        raise DataError(f"{location} is not a list of {kind.__name__}: {text[:60]!r}")
    return tuple(value)


def check_rows(path, rows, lines=None):
    """Raise DataError for a neighbour that is no row, is the row itself, or is there twice."""
    for number, row in enumerate(rows):
        location = f"{path}:{lines[number]}" if lines else f"{path}: row {number}"
        for neighbour in row.neg_image:
            if not 0 <= neighbour < len(rows):
                raise DataError(f"{location}: neighbour {neighbour} is no row of this file, which has {len(rows):,}")
            if neighbour == number:
                raise DataError(f"{location}: the row is its own neighbour")
        if len(set(row.neg_image)) < len(row.neg_image):
            raise DataError(f"{location}: a neighbour stands there twice: {list(row.neg_image)}")


def report_of(path):
    """The report of `mine_negatives` beside its table."""
    return Path(path).with_suffix(".json")


def recorded_images_dir(path):
    """The folder in which the paths of a table begin: as the report beside it says, else the table's own."""
    path = Path(path)
    try:
        report = read_object(report_of(path)) or {}
    except DataError:  # another file of that name
        report = {}
    folder = report.get(IMAGES_DIR)
    return path.parent / folder if isinstance(folder, str) else path.parent


def subset(rows, kept):
    """The rows at the places `kept`, in that order, their neighbours renumbered; those that are not kept fall away."""
    new = {old: number for number, old in enumerate(kept)}
    return [rows[old]._replace(neg_image=tuple(new[j] for j in rows[old].neg_image if j in new)) for old in new]


# ---- LMDB ----


def row_id(row):
    """The stable id of a row: a digest of its image path and caption, so the order of rows does not matter."""
    return hashlib.blake2b(f"{row.filepath}\0{row.title}".encode(), digest_size=12).digest()


def write_lmdb(path, rows):
    """Write the table as an LMDB folder: row id -> msgpack of [title, filepath, neg_caption, ids of the neighbours].

    It is built beside `path` and takes its name when it is whole. Rows of one image and caption become one.
    raises: UserError where `path` is there already or cannot be written
    """
    import lmdb
    import msgpack

    path = Path(path)
    if path.exists():
        raise UserError(f"{path} is there already; remove it or choose another name")
    check_rows(path, rows)
    ids, new = [row_id(row) for row in rows], path.with_name(f".tmp-{path.name}")
    try:
        _remove(new)
        new.mkdir(parents=True)
        with lmdb.open(str(new), map_size=lmdb_files.MAP_SIZE, lock=False) as environment:
            for start in range(0, len(rows), COMMIT_EVERY):
                with environment.begin(write=True) as transaction:
                    for i, row in enumerate(rows[start : start + COMMIT_EVERY], start):
                        value = [row.title, row.filepath, row.neg_caption, [ids[j] for j in row.neg_image]]
                        transaction.put(ids[i], msgpack.packb(value))
            with environment.begin(write=True) as transaction:
                transaction.put(META_KEY, FORMAT)
        new.rename(path)
    except (lmdb.Error, OSError) as error:
        raise UserError(f"{path} cannot be written: {error}") from None


def _remove(folder):
    """Remove what a killed writer left."""
    for file in folder.glob("*.mdb"):
        file.unlink()
    if folder.exists():
        folder.rmdir()


class NegativeLMDB:
    """The rows of an LMDB by id. It holds a path, so any worker can have a copy.

    raises: UserError where there is no such store
    """

    def __init__(self, path):
        import lmdb

        self.path = Path(path)
        if not (self.path / "data.mdb").is_file():
            raise UserError(f"there are no mined negatives at {path}; clip_vl.mine_negatives writes them")
        try:
            found = self._get(META_KEY)
        except lmdb.Error as error:
            raise DataError(f"{path} is damaged: {error}; mine it again") from None
        if found != FORMAT:
            raise UserError(f"{path} is an LMDB of something else than mined negatives")

    def _get(self, key):
        with lmdb_files.open_reader(self.path).begin() as transaction:
            return transaction.get(key)

    def keys(self):
        """The ids of all rows, sorted."""
        with lmdb_files.open_reader(self.path).begin() as transaction:
            return [key for key in transaction.cursor().iternext(values=False) if key != META_KEY]

    def load(self, key):
        """A row; its `neg_image` are ids. Raises DataError where it is not there or damaged."""
        import msgpack

        value = self._get(key)
        if value is None:
            raise DataError(f"{self.path} has no row {key.hex()}; mine it again")
        try:
            title, filepath, captions, neighbours = msgpack.unpackb(value)
        except (ValueError, msgpack.UnpackException):
            raise DataError(f"{self.path}: row {key.hex()} is damaged; mine it again") from None
        return NegativeRow(title, filepath, tuple(captions), tuple(neighbours))
