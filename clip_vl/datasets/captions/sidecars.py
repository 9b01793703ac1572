"""Captions beside an image, NAME.txt or NAME.json, as img2dataset writes them: in folders and in tar shards alike."""

from clip_vl.engine.errors import DataError
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.engine.readers.text import whole_text

MAX_TEXT = 1 << 20  # bytes of a file


def sidecar_text(name, data):
    """The text of a file's bytes, without a byte-order mark and blanks around it. Raises DataError with `name`."""
    if len(data) > MAX_TEXT:
        raise DataError(f"{name} has more than {MAX_TEXT:,} bytes, the most that a text may have")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise DataError(f"{name} is not UTF-8 text") from None


def sidecar_captions(name, data, extension):
    """[caption] of the bytes of a .txt, or of "caption" or "captions" of a .json, each a text or a list of texts.

    [] where there is none, or blanks alone. Raises DataError with `name`.
    """
    text = sidecar_text(name, data)
    if extension != ".json":
        return [text] if text else []
    try:
        about = parse_json(text)
    except ValueError as error:
        raise DataError(f"{name} is not valid JSON: {error}") from None
    about = about if isinstance(about, dict) else {}
    found = about.get("caption") or about.get("captions") or []
    found = [found] if isinstance(found, str) else found
    found = [text.strip() for text in found if isinstance(text, str)] if isinstance(found, list) else []
    return [_checked(name, text) for text in found if text]


def _checked(name, text):
    try:
        return whole_text(text)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None
