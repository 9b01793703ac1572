"""Reads the official files in <data root>/official, and writes annotation files, whole or not at all."""

import hashlib
import json
from contextlib import contextmanager
from pathlib import Path

from clip_vl.datasets.storage.json_stream import iterate_json_list, read_json
from clip_vl.engine.errors import DataError
from clip_vl.engine.files import atomic_file
from clip_vl.engine.readers.text import whole_text

TRAINING_FILES = ("mscoco_train", "mscoco_nominival", "vgnococo")  # of pre-training, in lxmert/
OFFICIAL = "official"  # folder below the data root, without subfolders, with the published file names
MINIVAL_PART = 8  # without a published list an eighth of val2014 is held out, about 5,060 of 40,504 images


def official_path(root, name):
    return Path(root, OFFICIAL, f"{name}.json")


def read_official(path):
    """The content of an official JSON file."""
    try:
        return read_json(path)
    except DataError as error:
        raise DataError(f"{error}; fetch it again") from None


@contextmanager
def expected_form(path):
    """Turn a missing key or a value of another type in the block into a DataError that names the file."""
    try:
        yield
    except KeyError as error:
        raise DataError(f"{path} has an entry without the key {error}; fetch the file again") from error
    except (TypeError, AttributeError, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise DataError(f"{path} does not have its official form ({reason}); fetch the file again") from error


def text_of(entry, key):
    """entry[key], which must be a string; else KeyError or TypeError, for `expected_form`."""
    if not isinstance(entry[key], str):
        raise TypeError(f"{key!r} is a {type(entry[key]).__name__}, not a string")
    return whole_text(entry[key])


def coco_image_id(split, number):
    """The id of a COCO image, such as COCO_val2014_000000000042."""
    return f"COCO_{split}_{number:012d}"


def minival_rule(root):
    """A function img_id -> whether this val2014 image is held out as minival.

    Held out are the images of lxmert/mscoco_minival.json or vqa/minival.json if one exists; else those whose id has a
    sha256 with a first byte divisible by 8.
    """
    for name in ("lxmert/mscoco_minival.json", "vqa/minival.json"):
        path = Path(root, name)
        if path.exists():
            with expected_form(path):
                return {entry["img_id"] for _, entry in iterate_json_list(path)}.__contains__
    return lambda img_id: hashlib.sha256(img_id.encode()).digest()[0] % MINIVAL_PART == 0


def write_list(path, rows):
    """Write a JSON list, one item per line, so that errors can name the line; an existing file is kept.

    rows:    any iterable, consumed while the file is written
    returns: [path] if it was written, else []
    """
    if path.exists():
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        separator = b"[\n"
        for row in rows:
            file.write(separator + json.dumps(row).encode())
            separator = b",\n"
        file.write(b"\n]\n" if separator == b",\n" else b"[]\n")
    return [path]


def write_value(path, value):
    """Write any JSON value on one line; returns as `write_list`."""
    if path.exists():
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.write(json.dumps(value).encode())
    return [path]


def write_label_tables(folder, find_answers):
    """trainval_label2ans.json, unless it exists, and trainval_ans2label.json, its inverse, unless that does.

    find_answers: returns the answers in the order of their classes; called where there is no list yet
    returns:      paths written
    """
    as_list, as_dict = (Path(folder, f"trainval_{name}.json") for name in ("label2ans", "ans2label"))
    answers = read_json(as_list) if as_list.exists() else find_answers()
    return write_value(as_list, answers) + write_value(as_dict, {answer: i for i, answer in enumerate(answers)})
