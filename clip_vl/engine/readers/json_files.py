"""JSON files that are read as a whole: configurations, results, settings. Other people may have written them.

A regular file of at most MAX_BYTES, nested at most MAX_DEPTH deep. The decoders refuse numbers that a float cannot hold
or that have more than MAX_DIGITS digits. `datasets.storage.json_stream` reads annotation files of any size with them.
"""

import json
import math
import stat
from pathlib import Path

from clip_vl.engine.errors import DataError

MAX_BYTES = 256 * 2**20
MAX_LINE = 2**24
MAX_DEPTH = 64
MAX_DIGITS = 300


def parse_json(text):
    """The value of JSON text (str, or bytes of UTF-8); ValueError with the reason in words."""
    try:
        value = LENIENT_DECODER.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    _check_depth(value)
    return value


def read_object(path):
    """The JSON object in a file; None where there is no such file, DataError for anything else."""
    data = read_bounded(path)
    if data is None:
        return None
    try:
        value = parse_json(data)
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}).") from None
    if not isinstance(value, dict):
        raise DataError(f"{path} should hold a JSON object, not a {type(value).__name__}.")
    return value


def read_bounded(path, limit=MAX_BYTES):
    """The bytes of a regular file; None where there is none, DataError for one that is larger or cannot be read."""
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is not a regular file.")
        if status.st_size > limit:
            raise DataError(f"{path} has {status.st_size:,} bytes; at most {limit:,} are read.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None


def is_number(value):
    """Whether a JSON value is a number that can be drawn and averaged."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_depth(value):
    level = [value]
    for _ in range(MAX_DEPTH):
        items = (item for part in level for item in (part.values() if isinstance(part, dict) else part))
        level = [item for item in items if isinstance(item, dict | list)] if isinstance(level[0], dict | list) else []
        if not level:
            return
    raise ValueError("it is nested too deeply")


def _bounded_int(digits):
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"it holds a number of {len(digits):,} digits")
    return int(digits)


def _finite_float(digits):
    value = float(digits)
    if math.isinf(value):
        raise ValueError(f"it holds a number that is too large, {digits:.20}")
    return value


def _no_constant(name):
    raise ValueError(f"{name} is not a JSON number")


NUMBERS = {"parse_int": _bounded_int, "parse_float": _finite_float}
LENIENT_DECODER = json.JSONDecoder(**NUMBERS)  # NaN and Infinity, which Python writes into logs, are read
STRICT_DECODER = json.JSONDecoder(**NUMBERS, parse_constant=_no_constant)  # NaN and Infinity are errors, as in JSON
