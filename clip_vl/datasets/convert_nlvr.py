"""NLVR2's official JSON lines and NLVR v1's archives -> the statements that `nlvr2.py` reads, and v1's pictures."""

import json
import os
import re
import zipfile
import zlib
from pathlib import Path

from clip_vl.datasets.images import NLVR, NLVR2, image_path
from clip_vl.datasets.official import OFFICIAL, expected_form, write_list
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_write

SPLITS = ("train", "dev", "test1", "test2")
ARCHIVES = ("train", "dev", "test")
LABELS = {"true": 1, "false": 0}
PERMUTATIONS = 6  # orders of the three boxes, a picture of each
MAX_MEMBER = 64 * 2**20  # bytes; the largest official member has 12 MB
IDENTIFIER = re.compile(r"[0-9]+-[0-9]+")


def read_json_lines(lines, name):
    """Yield (line number, object) of JSON lines; DataError names the line. Empty lines are passed over."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{name}:{number}: is not JSON ({error}); fetch the file again") from None
        if not isinstance(value, dict):
            raise DataError(f"{name}:{number}: an object was expected, not a {type(value).__name__}")
        yield number, value


def _label(entry, place):
    """{"label": 0 or 1}, or {} for a hidden one."""
    if "label" not in entry:
        return {}
    label = LABELS.get(str(entry["label"]).lower())
    if label is None:
        raise DataError(f"{place}: the label {entry['label']!r:.40} is neither true nor false")
    return {"label": label}


# ---- NLVR2


def convert_nlvr2(root):
    """official/nlvr2_{train,dev,test1,test2}.json, those that are there -> nlvr2/*.json; returns paths written."""
    written = []
    for split in SPLITS:
        path = Path(root, OFFICIAL, f"nlvr2_{split}.json")
        if path.exists():
            written += write_list(Path(root, "nlvr2", f"{split}.json"), list(_nlvr2_rows(path)))
    return written


def _nlvr2_rows(path):
    with path.open(encoding="utf-8") as lines, expected_form(path):
        for number, entry in read_json_lines(lines, path):
            pair = entry["identifier"].rpartition("-")[0]  # dev-850-2-1: sentence 1 about the pair dev-850-2
            row = {"identifier": entry["identifier"], "img0": f"{pair}-img0", "img1": f"{pair}-img1"}
            yield row | _label(entry, f"{path}:{number}") | {"sent": entry["sentence"], "uid": entry["identifier"]}


def flatten_nlvr2(root):
    """Move nlvr2_raw_images/train/<directory>/*.png up to nlvr2_raw_images/train; nothing is overwritten.

    returns: the number of images moved. Each move is one rename, so an interrupt leaves every image in one place.
    """
    target, moved = Path(root, NLVR2.folders["train-"]), 0
    for nested in sorted(target.glob("[0-9]*")):
        if not nested.is_dir() or nested.is_symlink():
            continue
        for image in sorted(nested.glob("*.png")):
            if not os.path.lexists(target / image.name):
                image.rename(target / image.name)
                moved += 1
        if not any(nested.iterdir()):
            nested.rmdir()
    return moved


# ---- NLVR v1


def convert_nlvr(root, archives=None):
    """NLVR v1 archives in their original layout -> nlvr/<split>.json and the pictures in nlvr_raw_images.

    archives: paths of nlvr_{train,dev,test}.zip; None: those in official/
    A row is a statement about one picture: {"identifier": "dev-1373-0-4", "img0": the same, "label", "sent",
    "directory"}; the last number is the order of the boxes. Only pictures that the JSON names are unpacked.
    returns: paths of the statement files written
    """
    if archives is None:
        archives = sorted(Path(root, OFFICIAL).glob("nlvr_*.zip"))
    written = []
    for path in map(Path, archives):
        split = path.stem.removeprefix("nlvr_")
        if split not in ARCHIVES:
            raise UserError(
                f"{path} is not an archive of NLVR v1; these are nlvr_train.zip, nlvr_dev.zip, nlvr_test.zip"
            )
        try:
            with zipfile.ZipFile(path) as archive:
                rows = list(_nlvr_rows(archive, path, split))
                for row in rows:
                    _unpack(archive, path, split, row, root)
        except (OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{path} is not a whole zip archive ({error}); fetch it again") from error
        written += write_list(Path(root, "nlvr", f"{split}.json"), rows)
    return written


def _nlvr_rows(archive, path, split):
    member = f"nlvr/{split}/{split}.json"
    place = f"{path}/{member}"
    with expected_form(place):
        for number, entry in read_json_lines(_member(archive, path, member).decode().splitlines(), place):
            if not (IDENTIFIER.fullmatch(entry["identifier"]) and entry["directory"].isdecimal()):
                raise DataError(f"{place}:{number}: identifier and directory must be numbers such as 3776-0 and 2")
            for order in range(PERMUTATIONS):
                name = f"{split}-{entry['identifier']}-{order}"
                row = {"identifier": name, "img0": name} | _label(entry, f"{place}:{number}")
                yield row | {"sent": entry["sentence"], "directory": entry["directory"]}


def _unpack(archive, path, split, row, root):
    """Write the picture of a row unless it is there in its size."""
    member = f"nlvr/{split}/images/{row['directory']}/{row['img0']}.png"
    target = image_path(root, row["img0"], NLVR)
    try:
        size = archive.getinfo(member).file_size
    except KeyError:
        raise DataError(f"{path} has no {member}, which its JSON names; fetch it again") from None
    if target.is_file() and target.stat().st_size == size:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(target, _member(archive, path, member))


def _member(archive, path, name):
    """The bytes of a member, checked against its CRC, at most MAX_MEMBER of them whatever the archive says."""
    try:
        with archive.open(name) as file:
            data = file.read(MAX_MEMBER + 1)
    except KeyError:
        raise DataError(f"{path} has no {name}; is it NLVR v1 in its original layout?") from None
    except (zipfile.BadZipFile, zlib.error, RuntimeError, NotImplementedError, EOFError) as error:
        raise DataError(f"{path}: {name} cannot be read ({error}); fetch the archive again") from error
    if len(data) > MAX_MEMBER:
        raise DataError(f"{path}: {name} has more than {MAX_MEMBER:,} bytes, which no file of NLVR has")
    return data
