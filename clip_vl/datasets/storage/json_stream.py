"""Annotation files in JSON of any size, read one item at a time, with errors that name the file and the line.

The published files are single lists of up to 700 MB, either on one line or indented. The C decoder of the standard
library reads each item from a buffer that grows only as far as the item reaches, at most LONGEST_ITEM characters.
Numbers have the limits of `engine.readers.json_files`, which reads small files as a whole.
"""

import codecs
import contextlib
import json
import math
from pathlib import Path

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.json_files import STRICT_DECODER

READ_BYTES = 1 << 20
LONGEST_ITEM = 1 << 26  # characters; a published item has some thousands
LONGEST_SYMBOL = 16  # an error this close to the end of the buffer may be a word or an escape that is cut off there


def iterate_json_list(path):
    """Yield (line number, item) for every item of the list in the file, holding one buffer of it at a time.

    Raises UserError for a file that cannot be read and DataError ("file:line: ...") for anything but one whole list
    in UTF-8. Items before the fault have been yielded by then.
    """
    return _iterate(path, "[", "]", "list", lambda text: (text.line(), text.take_value()))


def iterate_json_object(path):
    """Yield (line number, key, value) for every member of the object in the file; otherwise as `iterate_json_list`."""
    return _iterate(path, "{", "}", "object", _take_member)


def iterate_json_members(path):
    """Yield (line number, key, item) for every item of every list that is a member of the object in the file.

    A member that is not a list is one item. For files such as {"images": [...], "annotations": [...]}, whose lists are
    longer than `iterate_json_object` would read at once.
    """

    def take(text):
        line, key = _take_key(text)
        if text.next_character() != "[":
            yield line, key, text.take_value()
            return
        for line, value in _items(text, "[", "]", "list", lambda text: (text.line(), text.take_value())):
            yield line, key, value

    for items in _iterate(path, "{", "}", "object", take):
        yield from items


def _iterate(path, opening, closing, name, take):
    with _open(path) as file:
        text = _Text(path, file, READ_BYTES, LONGEST_ITEM)
        yield from _items(text, opening, closing, name, take)
        text.expect("", f"the {name} has ended, but more text follows")


def _items(text, opening, closing, name, take):
    text.expect(opening, f"a JSON {name}, '{opening}...{closing}', was expected")
    if text.next_character() != closing:
        yield take(text)
        while text.next_character() == ",":
            text.position += 1
            text.next_character()
            yield take(text)
    text.expect(closing, f"',' or '{closing}' was expected after an item")


def _take_member(text):
    return *_take_key(text), text.take_value()


def _take_key(text):
    """(line, key) of a member; the position is then at its value."""
    line, key = text.line(), text.take_value()
    if not isinstance(key, str):
        raise text.error(f"a key is a string, not {key!r:.40}")
    text.expect(":", "':' was expected after a key")
    text.next_character()
    return line, key


def read_json(path):
    """The whole content of a JSON file; errors as in `iterate_json_list`."""
    with _open(path) as file:
        text = _Text(path, file, Path(path).stat().st_size + 1, math.inf)
        text.next_character()
        value = text.take_value()
        text.expect("", "the value has ended, but more text follows")
        return value


def iterate_json_lines(lines, name):
    """Yield (line number, object) for every line of a binary file that holds a JSON object a line.

    Empty lines are skipped. Raises DataError ("name:line: ...") for anything but one whole object in UTF-8.
    """
    for number, line in _lines_of(lines, name):
        if not line.strip():
            continue
        try:
            value = STRICT_DECODER.decode(line.decode("utf-8-sig" if number == 1 else "utf-8"))
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}:{number}: not valid JSON: {error}; was the file cut short?") from None
        if not isinstance(value, dict):
            raise DataError(f"{name}:{number}: a JSON object was expected, not a {type(value).__name__}")
        yield number, value


def _lines_of(file, name):
    """(line number, line) of a binary file; a line ends at \\n, \\r\\n or \\r, none of which JSON text holds."""
    number = 0
    while line := file.readline(LONGEST_ITEM + 1):
        if len(line) > LONGEST_ITEM:
            raise DataError(
                f"{name}:{number + 1}: the line passes {LONGEST_ITEM:,} bytes; is this a file of JSON lines?"
            )
        for part in line.rstrip(b"\r\n").split(b"\r"):
            number += 1
            yield number, part


@contextlib.contextmanager
def _open(path):
    try:
        with Path(path).open("rb") as file:
            yield file
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing; `python -m clip_vl.prepare check` lists what a data root needs and how to fetch it"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


class _Text:
    """The unread text of a file, `text[position:]`, read further when asked, with the line and column of a position."""

    def __init__(self, path, file, read_bytes, longest):
        self.path, self.file, self.read_bytes, self.longest = path, file, read_bytes, longest
        self.decode = codecs.getincrementaldecoder("utf-8-sig")().decode
        self.text, self.position, self.ended = "", 0, False
        self.counted, self.lines = 0, 1  # `lines` is the line number of text[counted]
        self.column_of_text = 1  # the column of text[0]

    def next_character(self):
        """Skip white space; returns the next character, or "" at the end of the file."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in " \n\r\t":
                    return self.text[self.position]
                self.position += 1
            if self.ended:
                return ""
            self._read_on()

    def expect(self, character, complaint):
        """Skip the next character, which must be this one ("": the end of the file)."""
        found = self.next_character()
        if found != character:
            here = repr(self.text[self.position : self.position + 20])
            instead = f"not {here}" if found else "but the file ends; was it cut short?"
            raise self.error(f"{complaint}, {instead}")
        self.position += len(character)

    def take_value(self):
        """Decode the JSON value at the position and skip it."""
        while True:
            try:
                value, end = STRICT_DECODER.raw_decode(self.text, self.position)
                if end < len(self.text) or self.ended:  # else a number may continue after the buffer
                    self.position = end
                    return value
            except json.JSONDecodeError as error:
                if self.ended or not self._may_be_cut(error):
                    raise self._decode_error(error) from None
            except (ValueError, RecursionError) as error:  # NaN, numbers of thousands of digits, thousands of brackets
                raise self.error(f"the item that starts here is not valid: {error}") from None
            if len(self.text) - self.position > self.longest:
                raise self.error(f"the item that starts here passes {self.longest:,} characters; is a quote missing?")
            self._read_on()

    def line(self):
        """The line number of the position."""
        self.lines += self.text.count("\n", self.counted, self.position)
        self.counted = self.position
        return self.lines

    def error(self, message, position=None):
        """A DataError that names the line and column of `position`, by default the current one."""
        position = self.position if position is None else position
        line = self.lines + self.text.count("\n", self.counted, position)
        return DataError(f"{self.path}:{line}: {message} (column {self._column(position):,})")

    def _column(self, position):
        start = self.text.rfind("\n", 0, position)
        return position - start if start >= 0 else position + self.column_of_text

    def _decode_error(self, error):
        if error.msg.startswith("Unterminated string") or error.pos >= len(self.text.rstrip()):
            return self.error("the file ends inside the item that starts here: it was cut short, or a quote is missing")
        return self.error(f"not valid JSON: {error.msg}", error.pos)

    def _may_be_cut(self, error):
        return error.msg.startswith("Unterminated string") or error.pos >= len(self.text) - LONGEST_SYMBOL

    def _read_on(self):
        """Drop the text already read and double the rest, so that a long item is tried few times."""
        self.line()
        self.column_of_text = self._column(self.position)
        self.text, self.position, self.counted = self.text[self.position :], 0, 0
        data = self.file.read(max(self.read_bytes, len(self.text)))
        self.ended = not data
        try:
            self.text += self.decode(data, final=self.ended)
        except UnicodeDecodeError as error:
            line = self.lines + self.text.count("\n") + error.object.count(b"\n", 0, error.start)
            byte = error.object[error.start]
            raise DataError(f"{self.path}:{line}: byte 0x{byte:02x} is not UTF-8; save the file as UTF-8") from None
