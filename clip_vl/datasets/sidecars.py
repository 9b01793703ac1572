"""Captions beside an image, NAME.txt or NAME.json, as img2dataset writes them: in folders and in tar shards alike."""

import json

from clip_vl.engine.errors import DataError

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
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name} is not valid JSON: {error}") from None
    about = about if isinstance(about, dict) else {}
    found = about.get("caption") or about.get("captions") or []
    found = [found] if isinstance(found, str) else found
    found = [text.strip() for text in found if isinstance(text, str)] if isinstance(found, list) else []
    return [_checked(name, text) for text in found if text]


def _checked(name, text):
    """JSON may write half of a character (`\\ud83d`), which no file can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{name}: the caption {text!r:.60} has half of a surrogate pair; remove it") from None
    return text
