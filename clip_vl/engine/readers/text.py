"""Text files: UTF-8 with or without a byte-order mark, whose lines end only at \\n, \\r\\n or \\r.

str.splitlines also splits at U+2028, U+0085, vertical tabs and file separators, which are characters of captions.
"""

import contextlib
import re
from pathlib import Path

from clip_vl.engine.errors import DataError, UserError

HALF_SURROGATE = re.compile("[\ud800-\udfff]")


@contextlib.contextmanager
def open_text(path, hint=""):
    """The file as text, for reading; its line ends are kept. hint: advice for a file that cannot be read.

    Raises UserError where it cannot be read, DataError ("file:line: ...") at bytes that are not UTF-8.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            yield file
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}{hint and f'; {hint}'}") from None
    except UnicodeDecodeError:
        raise not_utf8(path, Path(path).read_bytes()) from None


def not_utf8(name, data):
    """The DataError for `data` (bytes) that are not UTF-8."""
    try:
        data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(split_lines(data[: error.start].decode("utf-8-sig") + "x"))
        return DataError(f"{name}:{line}: byte 0x{data[error.start]:02x} is not UTF-8; save the file as UTF-8")
    return DataError(f"{name} changed while it was read; wait until it is whole")


def read_text(path, hint=""):
    """The whole text of a file; errors as in `open_text`."""
    with open_text(path, hint) as file:
        return file.read()


def split_lines(text):
    """The lines of a text without their ends."""
    lines = re.split("\r\n|\n|\r", text)
    return lines if lines[-1] else lines[:-1]


def read_lines(path, hint=""):
    """The lines of a text file without their ends; errors as in `open_text`."""
    return split_lines(read_text(path, hint))


def whole_text(text):
    """The text; ValueError where it contains half of a surrogate pair, which files and tokenizers cannot hold."""
    if not text.isascii() and HALF_SURROGATE.search(text):
        raise ValueError(f"{text!r:.80} holds half of a surrogate pair, which is no character; remove it from the text")
    return text


def written(text):
    """UTF-8 of a text to write; bytes of file names that are not UTF-8 become escapes such as \\udce9."""
    return text.encode("utf-8", "backslashreplace")


def raw_bytes(text):
    """Bytes of any str, for a digest: UTF-8, also of half surrogate pairs."""
    return text.encode("utf-8", "surrogatepass")


def id_of(value, whole=True):
    """An id in one form, however a file writes it: 1, 1.0, "1" and "1.0" are "1". ValueError for other values.

    whole: refuse half surrogates; rows that this repository wrote may name files whose names are not UTF-8
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError(f"an id must be a number or a text, not {value!r:.40}")
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = (whole_text(value) if whole else value).strip() if isinstance(value, str) else repr(value)
    if not text:
        raise ValueError("an id must be a number or a text, not an empty one")
    number = re.fullmatch(r"(-?\d+)\.0+", text)
    return number[1] if number else text
