"""Tables of image paths and captions: CSV and TSV with any separator, and the `image,caption` files of Flickr."""

import re
from pathlib import Path

from clip_vl.datasets.captions.source import path_below
from clip_vl.datasets.captions.table import BLANK, CaptionTable, LeftOut, Record, build_table
from clip_vl.datasets.storage.file_digests import file_digest
from clip_vl.datasets.storage.tables import captions_in, column_of, number_in, read_header, table_rows
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.text import open_text, whole_text

USUAL = {"csv_img_key": "image", "csv_caption_key": "caption"}  # instead of the default names
SPLIT = "split"
FLICKR_COLUMNS = ["image", "caption"]
FLICKR_LINE = re.compile(r"(.+?\.(?:jpe?g|jfif|png|webp|gif|bmp|tiff?|jp2|avif)),(.*)", re.IGNORECASE)


def open_csv(path, options, cache_root, splits=None):
    """The table of a CSV or TSV file, a row for each of its lines; where the columns are `image` and `caption` alone, a
    row for captions of one image that follow each other.

    splits: those to keep, by the column `split`; None: all rows
    Raises UserError for a column that is not there, DataError ("file:line: ...") for the rest.
    """
    path, images = Path(path), Path(options.images_dir or Path(path).parent)
    wanted = {options.csv_img_key, options.csv_caption_key, *FLICKR_COLUMNS}
    separator, names = read_header(path, options.csv_separator, wanted)
    columns = _columns(path, names, options, splits)
    inputs = {"csv": file_digest(path, cache_root), "images": str(images.absolute()), "separator": separator}
    inputs |= {"columns": columns, "splits": splits}

    def records():
        if names != FLICKR_COLUMNS:
            return _read_rows(path, images, separator, columns, splits)
        is_plain = separator != "," or _is_plain(path)
        return grouped(_read_rows(path, images, separator, columns, splits) if is_plain else _read_flickr(path, images))

    if SPLIT in names and not splits:
        dist.print0(f"{path}: the rows of all splits are read; {path}@train reads those of one")
    what = f"{path}@{'+'.join(splits)}" if splits else path
    folder, digest = build_table(cache_root, what, inputs, records, options.max_left_out)
    return CaptionTable(folder, digest, images)


def _columns(path, names, options, splits):
    """{meaning: index} of the wanted columns. A default name that is not there may be `image` or `caption`."""
    columns = {}
    for flag in ("csv_img_key", "csv_caption_key", "csv_label_key"):
        name = getattr(options, flag)
        if flag in USUAL and name not in names and name == type(options).__dataclass_fields__[flag].default:
            name = USUAL[flag] if USUAL[flag] in names else name
        if name is not None:
            columns[flag] = column_of(path, names, name, flag)
    if splits:
        if SPLIT not in names:
            raise UserError(f"{path}@{'+'.join(splits)}: the table has no column {SPLIT!r}; leave out the @")
        columns[SPLIT] = names.index(SPLIT)
    return columns


def _is_plain(path):
    """Whether a file of two columns is a plain CSV file, and not one of Flickr's, whose captions have bare commas."""
    try:
        return all(True for _ in table_rows(path, ","))
    except DataError:
        return False


def _read_rows(path, images, separator, columns, splits=None):
    found = set()
    for line, row in table_rows(path, separator):
        if splits:
            found.add(row[columns[SPLIT]].strip())
            if row[columns[SPLIT]].strip() not in splits:
                continue
        yield from _records(f"{path}:{line}", row, images, columns)
    if splits and not found & {*splits}:
        there = ", ".join(sorted(found)) or "none"
        raise UserError(f"{path} has no row of the split {'+'.join(splits)}; it has {there}")


def _records(location, row, images, columns):
    """The Record of a row, and a LeftOut for what is blank in it."""
    try:
        texts = [whole_text(text).strip() for text in captions_in(row[columns["csv_caption_key"]])]
        label = number_in(row[columns["csv_label_key"]]) if "csv_label_key" in columns else -1
        captions = [text for text in texts if text]
        if len(captions) < max(len(texts), 1):
            yield LeftOut(location, BLANK, max(len(texts), 1) - len(captions))
        if captions:
            yield Record(path_below(images, row[columns["csv_img_key"]].strip()), captions, label)
    except ValueError as error:
        raise DataError(f"{location}: {error}") from None


def _read_flickr(path, images):
    """Captions with commas and without quotes: a line is split behind the first name of an image file."""
    with open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if number == 1 or not line.strip():
                continue
            match = FLICKR_LINE.fullmatch(line.rstrip("\r\n"))
            if match is None:
                raise DataError(f"{path}:{number}: the name of an image file, a comma and a caption were expected")
            yield from _records(f"{path}:{number}", [match[1], _unquoted(match[2])], images, dict(zip(USUAL, (0, 1))))


def _unquoted(text):
    text = text.strip()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return text.strip()


def grouped(records):
    """Records of one image that follow each other, as one; what is left out passes through."""
    last = None
    for record in records:
        if isinstance(record, LeftOut):
            yield record
        elif last is not None and (last.path, last.label) == (record.path, record.label):
            last.captions.extend(record.captions)
        else:
            if last is not None:
                yield last
            last = record
    if last is not None:
        yield last
