"""One entry of an annotation file -> its image and its items, or a DataError naming the key and the form it needs."""

import json
from typing import NamedTuple

from clip_vl.datasets.lxmert.answers import label_scores
from clip_vl.engine.errors import DataError
from clip_vl.engine.readers.text import id_of, whole_text


class Item(NamedTuple):
    """A sentence about an image; `columns` holds what only this kind of annotation has."""

    sentence: str
    answer_ids: list
    answer_scores: list
    columns: dict


def read_pretrain_entry(entry, find, limit_source=()):
    """An LXMERT entry: {"img_id": str, "sentf": {category: [sentence]}, "labelf": {category: [{answer: score}]}}.

    find:    answer -> class or None
    returns: image id; items in the order of the entry, without the categories of limit_source; the number of answers
             without a class
    """
    img_id = _field(entry, "img_id", str)
    sentences, labels = _field(entry, "sentf", dict), _field(entry, "labelf", dict)
    items, unknown = [], 0
    for category in sentences:
        if category in limit_source:
            continue
        texts = _field(sentences, category, list)
        for number, (text, label) in enumerate(zip(texts, _labels(labels, category, len(texts)))):
            ids, scores, missed = _label(label, find)
            items.append(Item(_text(text), ids, scores, {"source": _text(category), "number": number}))
            unknown += missed
    return img_id, items, unknown


def read_vqa_entry(entry, find):
    """A VQA question: {"question_id": int or str, "img_id": str, "sent": str} and, where known, "label":
    {answer: score}, "question_type" and "answer_type"; returns what `read_pretrain_entry` does, with one item.

    The identifier is kept in its JSON form, so that a prediction file can repeat it as it was.
    """
    img_id, question_id = _field(entry, "img_id", str), _field(entry, "question_id", int | str)
    ids, scores, unknown = _label(_field(entry, "label", dict, {}), find)
    columns = {name: _text(_field(entry, name, str, "")) for name in ("question_type", "answer_type")}
    columns["question_id"] = json.dumps(_id(question_id))
    return img_id, [Item(_text(_field(entry, "sent", str)), ids, scores, columns)], unknown


def read_nlvr2_entry(entry, find):
    """A statement about two images: {"identifier": str, "img0": str, "img1": str, "sent": str} and, where it is known,
    "label": 0 or 1 for false and true; returns a tuple of image ids, one item, and 0.

    find: "False" or "True" -> class
    """
    return (_field(entry, "img0", str), _field(entry, "img1", str)), [_statement(entry, find)], 0


def read_nlvr_entry(entry, find):
    """A statement about one image, "img0"; otherwise as `read_nlvr2_entry`."""
    return _field(entry, "img0", str), [_statement(entry, find)], 0


def _statement(entry, find):
    """The item of a statement. Consistency is taken over parts of its identifier, of which both versions have four."""
    identifier, label = _field(entry, "identifier", str), entry.get("label")
    if identifier.count("-") != 3:
        raise DataError(f"the key 'identifier' must hold four parts, such as 'dev-850-2-1', not {_short(identifier)}")
    if label not in (0, 1, None):
        raise DataError(f"the key 'label' must hold 0 (false) or 1 (true), not {_short(label)}")
    ids, scores = ([], []) if label is None else ([find(str(bool(label)))], [1.0])
    columns = {"question_id": json.dumps(_text(identifier)), "question_type": "", "answer_type": ""}
    return Item(_text(_field(entry, "sent", str)), ids, scores, columns)


_NAMES = {str: "a string", dict: "an object", list: "a list", int | str: "a number or a string"}


def _field(entry, key, kind, default=None):
    """entry[key] if it is of that kind; without a default the key must be there."""
    if not isinstance(entry, dict):
        raise DataError(f"an object was expected, not {_short(entry)}")
    value = entry.get(key, default)
    if value is None and key not in entry:
        raise DataError(f"the key {key!r} is missing; it must hold {_NAMES[kind]}")
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(f"the key {key!r} must hold {_NAMES[kind]}, not {_short(value)}")
    return value


def _labels(labels, category, count):
    """The labels of a category's sentences: one for each, or empty ones for a category without labels."""
    if category not in labels:
        return [{}] * count
    found = _field(labels, category, list)
    if len(found) != count:
        raise DataError(
            f"category {category!r} has {count} sentences in 'sentf' but {len(found)} labels in 'labelf'; "
            "each sentence needs one"
        )
    return found


def _label(label, find):
    if not isinstance(label, dict):
        raise DataError(f"a label must be an object of answers and scores, not {_short(label)}")
    return label_scores(label, find)


def _id(value):
    """The identifier as it is, once it can be one."""
    try:
        id_of(value)
    except ValueError as error:
        raise DataError(str(error)) from None
    return value


def _text(value):
    if not isinstance(value, str):
        raise DataError(f"a sentence must be a string, not {_short(value)}")
    try:
        return whole_text(value)
    except ValueError as error:
        raise DataError(str(error)) from None


def _short(value):
    return f"{value!r:.60}" if isinstance(value, str | int | float | bool | None) else f"a {type(value).__name__}"
