"""Tables of image paths and captions: CSV and TSV with any separator, and the `image,caption` files of Flickr."""

import contextlib
import csv
import re
from pathlib import Path

from clip_vl.datasets.caption_source import path_below
from clip_vl.datasets.caption_table import CaptionTable, Record, build_table
from clip_vl.datasets.digests import file_digest
from clip_vl.engine.errors import DataError, UserError

SEPARATORS = "\t,;|"
NAMED_SEPARATORS = {"\\t": "\t", "tab": "\t", "comma": ","}
FLICKR_HEADER = "image,caption"
FLICKR_LINE = re.compile(r"(.+?\.jpg),(.*)", re.IGNORECASE)


def open_csv(path, settings, cache_root):
    """The table of a CSV or TSV file, a row for each of its lines; in a Flickr file, for captions of one image that
    follow each other. Raises UserError for a column that is not there, DataError ("file:line: ...") for the rest.
    """
    path, images = Path(path), Path(settings.images_dir or Path(path).parent)
    header = _header(path)
    is_flickr = header.strip() == FLICKR_HEADER
    separator, columns = None, {}
    if not is_flickr:
        separator = separator_of(header, settings)
        columns = _columns(path, header, separator, settings)

    def records():
        if is_flickr:
            return grouped(_read_flickr(path, images))
        return _read_rows(path, images, separator, columns)

    inputs = {"csv": file_digest(path, cache_root), "images": str(images.absolute()), "separator": separator}
    folder, digest = build_table(cache_root, path, inputs | {"columns": columns}, records)
    return CaptionTable(folder, digest, images)


@contextlib.contextmanager
def _opened(path):
    """The file as text; what is not UTF-8 is a DataError."""
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte 0x{error.object[error.start]:02x} is not UTF-8; save the file as UTF-8"
        ) from None


def _header(path):
    with _opened(path) as file:
        header = file.readline(1 << 20).rstrip("\r\n")
    if not header:
        raise DataError(f"{path} is empty; a line with the names of the columns was expected")
    return header


def separator_of(header, settings):
    """--csv_separator, or the one of tab, comma, semicolon and bar that gives the header most of the wanted columns."""
    if settings.csv_separator:
        separator = NAMED_SEPARATORS.get(settings.csv_separator, settings.csv_separator)
        if len(separator) != 1:
            raise UserError(f"--csv_separator {settings.csv_separator!r} must be one character")
        return separator
    wanted = {settings.csv_img_key, settings.csv_caption_key}
    return max(SEPARATORS, key=lambda one: (len(wanted & set(_split(header, one))), header.count(one)))


def _split(header, separator):
    return next(csv.reader([header], delimiter=separator), [])


def _columns(path, header, separator, settings):
    """{meaning: place} of the wanted columns."""
    found = _split(header, separator)
    columns = {}
    for flag in ("csv_img_key", "csv_caption_key", "csv_label_key"):
        name = getattr(settings, flag)
        if name is None:
            continue
        if name not in found:
            raise UserError(f"{path} has no column {name!r} (--{flag}); its columns are {', '.join(map(repr, found))}")
        columns[flag] = found.index(name)
    return columns


def _read_rows(path, images, separator, columns):
    with _opened(path) as file:
        rows = csv.reader(file, delimiter=separator, strict=True)
        width, line = len(next(rows)), 2
        while True:
            try:
                row = next(rows, None)
            except csv.Error as error:
                reason = f"the row that starts here cannot be read ({error}); quotes in a quoted field are doubled"
                raise DataError(f"{path}:{line}: {reason}") from None
            if row is None:
                return
            if row:
                yield _record(f"{path}:{line}", row, width, images, columns)
            line = rows.line_num + 1


def _record(place, row, width, images, columns):
    if len(row) != width:
        raise DataError(f"{place}: the row has {len(row)} columns, the header {width}")
    caption = row[columns["csv_caption_key"]].strip()
    label = row[columns["csv_label_key"]].strip() if "csv_label_key" in columns else "-1"
    if not caption:
        raise DataError(f"{place}: the caption is empty; remove the row")
    if not re.fullmatch(r"-1|\d{1,9}", label):
        raise DataError(f"{place}: the class {label!r:.40} must be an integer from 0, or -1 for none")
    return Record(_checked_path(place, images, row[columns["csv_img_key"]]), [caption], int(label))


def _checked_path(place, images, path):
    try:
        return path_below(images, path.strip())
    except ValueError as error:
        raise DataError(f"{place}: {error}") from None


def _read_flickr(path, images):
    """Captions with commas and without quotes: a line is split at its first `.jpg,`."""
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1 or not line.strip():
                continue
            match = FLICKR_LINE.fullmatch(line.rstrip("\r\n"))
            if match is None or not (caption := _unquoted(match[2])):
                raise DataError(f"{path}:{number}: a name that ends in .jpg, a comma and a caption were expected")
            yield Record(_checked_path(f"{path}:{number}", images, match[1]), [caption])


def _unquoted(text):
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return text.strip()


def grouped(records):
    """Records of one image that follow each other, as one."""
    last = None
    for record in records:
        if last is not None and (last.path, last.label) == (record.path, record.label):
            last.captions.extend(record.captions)
            continue
        if last is not None:
            yield last
        last = record
    if last is not None:
        yield last
