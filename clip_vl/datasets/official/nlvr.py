"""Converts NLVR2's official JSON lines and NLVR v1's archives to the statements that `nlvr2.py` reads, and v1's images.

Archives are not trusted: only the images that the JSON names are extracted, under names formed here and with limits on
their sizes.
"""

import io
import os
import re
import zipfile
import zlib
from pathlib import Path

from clip_vl.datasets.images.collections import NLVR, image_path
from clip_vl.datasets.official.files import OFFICIAL, expected_form, text_of, write_list
from clip_vl.datasets.storage.json_stream import iterate_json_lines
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_write

SPLITS = ("train", "dev", "test1", "test2")
ARCHIVES = ("train", "dev", "test")
LABELS = {"true": 1, "false": 0}
PERMUTATIONS = 6  # orders of the three boxes, an image of each
MAX_JSON = 64 * 2**20  # bytes; the official train.json has 12 MB
MAX_IMAGE = 2**20  # bytes; the largest official image has 5 KB
MAX_IMAGES = 2 * 2**30  # bytes; the 74,460 images of train have 0.3 GB
PAIR_IDENTIFIER = re.compile(r"(train|dev|test1|test2)-[0-9]+-[0-9]+-[0-9]+")
IDENTIFIER = re.compile(r"[0-9]+-[0-9]+")
DIRECTORY = re.compile(r"[0-9]+")


def _label(entry):
    """{"label": 0 or 1}, or {} for a hidden one."""
    if "label" not in entry:
        return {}
    label = LABELS.get(str(entry["label"]).lower())
    if label is None:
        raise ValueError(f"the label {entry['label']!r:.40} is neither true nor false")
    return {"label": label}


def _matching(entry, key, pattern, example):
    if not pattern.fullmatch(text_of(entry, key)):
        raise ValueError(f"{key} {entry[key]!r:.80} is not of the form of {example}")
    return entry[key]


# ---- NLVR2


def convert_nlvr2(root, splits=SPLITS):
    """official/nlvr2_<split>.json -> nlvr2/<split>.json, for the splits whose file exists; returns paths written."""
    written = []
    for split in splits:
        path = Path(root, OFFICIAL, f"nlvr2_{split}.json")
        if path.exists():
            written += write_list(Path(root, "nlvr2", f"{split}.json"), _nlvr2_rows(path))
    return written


def _nlvr2_rows(path):
    """Rows in LXMERT's form; uid is the identifier, img1 the right image."""
    with path.open("rb") as lines:
        for number, entry in iterate_json_lines(lines, path):
            with expected_form(f"{path}:{number}"):
                identifier = _matching(entry, "identifier", PAIR_IDENTIFIER, "dev-850-2-1")
                pair = identifier.rpartition("-")[0]  # dev-850-2-1: sentence 1 about the pair dev-850-2
                row = {"identifier": identifier, "img0": f"{pair}-img0", "img1": f"{pair}-img1"}
                row |= _label(entry) | {"sent": text_of(entry, "sentence"), "uid": identifier}
            yield row


# ---- NLVR v1


def convert_nlvr(root, archives=None):
    """NLVR v1 archives in their original layout -> nlvr/<split>.json and the images in nlvr_raw_images.

    archives: paths of nlvr_{train,dev,test}.zip; None: those in official/
    A row is a statement about one image: {"identifier": "dev-1373-0-4", "img0": the same, "label", "sent",
    "directory"}; the last number is the order of the boxes. Existing images of the right size are kept and the rows are
    written last, so that a repeat continues.
    returns: paths of the statement files written
    """
    if archives is None:
        archives = sorted(Path(root, OFFICIAL).glob("nlvr_*.zip"))
    written = []
    for path in map(Path, archives):
        split = path.stem.removeprefix("nlvr_")
        if split not in ARCHIVES:
            raise UserError(
                f"{path} is not an archive of NLVR v1: nlvr_train.zip, nlvr_dev.zip or nlvr_test.zip"
            )
        with _opened(path) as archive:
            rows = list(_nlvr_rows(archive, path, split))
            _unpack(archive, path, {_member_of(split, row): row["img0"] for row in rows}, root)
        written += write_list(Path(root, "nlvr", f"{split}.json"), rows)
    return written


def _opened(path):
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError:
        raise UserError(
            f"there is no {path}; `python -m clip_vl.prepare convert --need nlvr` says how to get it"
        ) from None
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is not a whole zip archive ({error}); fetch it again") from error


def _nlvr_rows(archive, path, split):
    member = f"nlvr/{split}/{split}.json"
    lines, place = io.BytesIO(_read(archive, path, member, MAX_JSON)), f"{path}/{member}"
    for number, entry in iterate_json_lines(lines, place):
        with expected_form(f"{place}:{number}"):
            identifier = _matching(entry, "identifier", IDENTIFIER, "3776-0")
            row = _label(entry) | {"sent": text_of(entry, "sentence")}
            row["directory"] = _matching(entry, "directory", DIRECTORY, "2")
        for order in range(PERMUTATIONS):
            name = f"{split}-{identifier}-{order}"
            yield {"identifier": name, "img0": name} | row


def _member_of(split, row):
    return f"nlvr/{split}/images/{row['directory']}/{row['img0']}.png"


def _unpack(archive, path, img_ids, root):
    """Write the images img_ids[member] that do not exist with their size."""
    sizes = {member: _size(archive, path, member) for member in img_ids}
    if sum(sizes.values()) > MAX_IMAGES:
        raise DataError(f"{path} has images of {sum(sizes.values()):,} bytes; NLVR has at most {MAX_IMAGES:,}")
    for member, img_id in img_ids.items():
        target = image_path(root, img_id, NLVR)
        if not (target.is_file() and target.stat().st_size == sizes[member]):
            target.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(target, _read(archive, path, member, MAX_IMAGE), durable=False)
    os.sync()  # once, before the rows are written: after each of 74,460 images it would take 15 minutes


def _size(archive, path, member):
    """The size of a member according to the archive; `_read` checks it."""
    try:
        return archive.getinfo(member).file_size
    except KeyError:
        raise DataError(f"{path} has no {member}; is it NLVR v1 in its original layout, and whole?") from None


def _read(archive, path, member, limit):
    """The bytes of a member, checked by its CRC; DataError for more than `limit` bytes."""
    if _size(archive, path, member) > limit:
        raise DataError(f"{path}: {member} has more than {limit:,} bytes, which no such file of NLVR has")
    try:
        if archive.getinfo(member).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise NotImplementedError("another compression than deflate")
        return archive.read(member)
    except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError) as error:  # NotImplementedError is a RuntimeError
        raise DataError(f"{path}: {member} cannot be read ({error}); fetch the archive again") from error
