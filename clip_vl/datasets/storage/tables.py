"""Tables in text files: a header, then rows of fields with separators, quoted as spreadsheets and pandas do.

In tab-separated files a quote is one only if it opens and closes a field: `"vintage poster` is text.
"""

import ast
import csv
import json
import math
import re

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.text import open_text

SEPARATORS = "\t,;|"
NAMED_SEPARATORS = {"\\t": "\t", "tab": "\t", "comma": ","}
LONGEST_FIELD = 1 << 17  # characters, as the csv module has it
TAB_FIELD = re.compile(r'"((?:[^"]|"")*)"(?=\t|\Z)|([^\t]*)')
STILL_OPEN = re.compile(r'(?:^|\t)"(?:[^"]|"")*\Z')
MISSING = frozenset((
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
))  # what pandas reads as no value  # fmt: skip


def read_header(path, given, wanted):
    """(separator, column names) of a file, whose header is the first line that is not blank.

    given:  the separator, or ""; then it is that of tab, comma, semicolon and bar that finds most of the `wanted` names
    """
    with open_text(path) as file:
        header = next((line.rstrip("\r\n") for line in file if line.strip("\r\n")), "")
    if not header:
        raise DataError(f"{path} is empty; a line with the names of the columns was expected")
    if given:
        separator = NAMED_SEPARATORS.get(given, given)
        if len(separator) != 1:
            raise UserError(f"--csv_separator {given!r} must be one character")
    else:
        separator = max(SEPARATORS, key=lambda one: (len({*wanted} & {*split_header(header, one)}), header.count(one)))
    return separator, split_header(header, separator)


def split_header(header, separator):
    fields = _tab_fields(header) if separator == "\t" else next(csv.reader([header], delimiter=separator), [])
    return [field.strip() for field in fields]


def column_of(path, names, name, flag):
    """The index of a column. UserError where it is missing or there are two."""
    if names.count(name) != 1:
        problem = f"{names.count(name)} columns" if name in names else "no column"
        raise UserError(f"{path} has {problem} {name!r} (--{flag}); its columns are {', '.join(map(repr, names))}")
    return names.index(name)


def table_rows(path, separator):
    """Yield (line number of its start, fields) of each row after the header; empty lines are skipped.

    Raises DataError ("file:line: ...") for a row that cannot be read or whose number of fields is not the header's.
    """
    width = None
    with open_text(path) as file:
        for line, row in (_tab_rows if separator == "\t" else _quoted_rows)(file, path, separator):
            if width is None:
                width = len(row)
            elif len(row) != width:
                raise DataError(f"{path}:{line}: the row has {len(row)} columns, the header {width}")
            else:
                yield line, row


def _quoted_rows(file, path, separator):
    rows, line = csv.reader(file, delimiter=separator, strict=True), 1
    while True:
        try:
            row = next(rows, None)
        except csv.Error as error:
            reason = f"the row that starts here cannot be read ({error}); quotes in a quoted field are doubled"
            raise DataError(f"{path}:{line}: {reason}") from None
        if row is None:
            return
        if row:
            yield line, row
        line = rows.line_num + 1


def _tab_rows(file, *_):
    lines, later, width = enumerate(file, start=1), [], None
    while (found := later.pop(0) if later else next(lines, None)) is not None:
        line, text = found
        if not text.strip("\r\n"):
            continue
        row = _tab_fields(text.rstrip("\r\n"))
        width = width or len(row)
        if '"' in text and STILL_OPEN.search(text.rstrip("\r\n")):
            row = _closed_row(text, row, width, lines, later) or row
        yield line, row


def _closed_row(text, row, width, lines, later):
    """The row whose quoted field continues over the next lines, none of which is a row itself; None if it does not.

    later: lines that were read ahead
    """
    for taken in range(LONGEST_FIELD):
        if taken == len(later) and (found := next(lines, None)) is not None:
            later.append(found)
        if taken == len(later) or len(text) > LONGEST_FIELD:
            return None
        more = later[taken][1]
        is_row = len(_tab_fields(more.rstrip("\r\n"))) == width
        if is_row and len(row) == width:
            return None
        text += more
        whole = text.rstrip("\r\n")
        if not STILL_OPEN.search(whole) and len(fields := _tab_fields(whole)) == width:
            del later[: taken + 1]
            return fields
        if is_row:
            return None
    return None


def _tab_fields(line):
    if '"' not in line:
        return line.split("\t")
    fields, position = [], 0
    while position <= len(line):
        match = TAB_FIELD.match(line, position)
        fields.append(match[2] if match[1] is None else match[1].replace('""', '"'))
        position = match.end() + 1
    return fields


# ---- cells


def captions_in(cell):
    """The captions of a cell: its text, or the items of a list in JSON or Python syntax, as pandas writes it."""
    text = cell.strip()
    if text[:1] == "[" and text[-1:] == "]" and len(text) <= LONGEST_FIELD:
        for parse in (json.loads, ast.literal_eval):
            try:
                value = parse(text)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(value, list) and all(isinstance(item, str) for item in value):
                return value
    return [text]


def number_in(cell):
    """The class number of a cell, -1 for none: "3", "3.0", "-1", "nan" and "", as in pandas. ValueError for others."""
    text = cell.strip()
    if text in MISSING:
        return -1
    number = float(text) if re.fullmatch(r"[-+]?\d+(\.\d*)?([eE][-+]?\d{1,3})?", text) else math.inf
    if not (-1 <= number < 1e9 and number.is_integer()):
        raise ValueError(f"the class {text!r:.40} must be an integer from 0, or -1 for none")
    return int(number)
