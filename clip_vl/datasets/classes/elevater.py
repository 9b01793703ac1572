"""ELEVATER's image classification sets (arXiv:2204.08790), read in place: an index per split, images inside zips.

    <datasets_dir>/vision_datasets.json                          what the sets are called and where they lie
    <datasets_dir>/classification/<set>_<date>/train.txt         lines "train.zip@path/in/zip.jpg label[,label]"
                                               train.zip labels.txt
Some sets have COCO-style JSON for an index. Nothing is unpacked; archives and indices are foreign files, so names may
not leave their folder, and no member is read beyond `MOST_BYTES`, whatever the header of the member says.
"""

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from clip_vl.datasets.classes.class_set import ClassSet, checked_path
from clip_vl.datasets.classes.names import SQUASHED, benchmark_key, metric_of
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.engine.readers.text import read_lines, whole_text

MOST_BYTES = 128 << 20  # of one image file; a photograph of 100 megapixels has 50 MB
MULTI_LABEL = "classification_multilabel"


class ZipReader:
    """Members of zips and plain files below a folder, by "file.zip@member" or path. Each process opens its own."""

    def __init__(self, root):
        self.root, self.opened, self.owner = Path(root), {}, None

    def __reduce__(self):
        return type(self), (self.root,)

    def __call__(self, name):
        archive, _, member = name.rpartition("@") if ".zip@" in name else ("", "", name)
        path = self.root / (archive or member)
        try:
            if archive:
                return self._member(self._open(path), member, f"{path}@{member}")
            with path.open("rb") as file:
                return _bounded(file, path)
        except DamagedImage:
            raise
        except KeyError:
            raise DamagedImage(path, f"has no member {member!r}") from None
        except (
            OSError,
            zipfile.BadZipFile,
            zlib.error,
            RuntimeError,
            NotImplementedError,
            EOFError,
            ValueError,
        ) as error:
            raise DamagedImage(
                f"{path}@{member}", f"cannot be read: {getattr(error, 'strerror', None) or error}"
            ) from None

    def _open(self, path):
        if self.owner != os.getpid():  # a fork shares the position in the file with its parent
            self.opened, self.owner = {}, os.getpid()
        if path not in self.opened:
            self.opened[path] = zipfile.ZipFile(path)
        return self.opened[path]

    def _member(self, archive, member, name):
        info = archive.getinfo(member)
        if info.file_size > MOST_BYTES:
            raise DamagedImage(name, f"has {info.file_size:,} bytes unpacked; no more than {MOST_BYTES:,} are read")
        with archive.open(info) as file:
            return _bounded(file, name)

    def content(self, names):
        """Size and time of each archive or file that the names are in."""
        paths = sorted({name.rpartition("@")[0] if ".zip@" in name else name for name in names})
        try:
            return [[path, *self._state(path)] for path in paths]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from None

    def _state(self, path):
        status = (self.root / path).stat()
        return status.st_size, status.st_mtime_ns


def _bounded(file, name):
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise DamagedImage(name, f"has more than {MOST_BYTES:,} bytes")
    return data


def open_elevater(name, split, datasets_dir, metadata=None):
    """The split of the dataset that vision_datasets.json calls `name`; its files lie below `datasets_dir`.

    metadata: the path of vision_datasets.json [<datasets_dir>/vision_datasets.json]
    """
    path = Path(metadata or Path(datasets_dir) / "vision_datasets.json")
    entries = {str(entry.get("name")): entry for entry in _json(path, list)}
    if name not in entries:
        raise UserError(f"{path} has no data set {name!r}; it has {', '.join(sorted(entries))}")
    entry = entries[name]
    splits = [key for key, value in entry.items() if isinstance(value, dict) and "index_path" in value]
    if split not in splits:
        raise UserError(f"ELEVATER's {name} has no split {split!r}; it has {', '.join(splits)}")
    root = Path(datasets_dir) / checked_path(path, datasets_dir, str(entry["root_folder"]))
    index = root / checked_path(path, root, str(entry[split]["index_path"]))
    ids, labels, names = (_coco if entry.get("format") == "coco" else _lines)(index, root, entry)
    _check_count(index, len(ids), entry[split].get("num_images"))
    reader, key = ZipReader(root), benchmark_key(name)
    return ClassSet(
        f"elevater:{name} {split}", ids, reader, _matrix(labels, len(names), entry, index), names, reader.content(ids),
        metric=metric_of(key), crop="squash" if key in SQUASHED else None,
    )  # fmt: skip


def _check_count(index, found, expected):
    if expected and found != expected:
        raise DataError(f"{index} lists {found:,} images, and vision_datasets.json says {expected:,}")


def _json(path, kind):
    try:
        value = parse_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}; --datasets_dir names its folder") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, kind):
        raise DataError(f"{path} should hold a JSON {'list' if kind is list else 'object'}")
    return value


def _text(path):
    return read_lines(path, "--datasets_dir names the folder that holds classification/")


def _lines(index, root, entry):
    """(ids, lists of labels, class names) of an index of lines."""
    ids, labels = [], []
    for number, line in enumerate(_text(index), start=1):
        if not line.strip():
            continue
        name, _, values = line.strip().rpartition(" ")
        try:
            found = [int(value) for value in values.split(",")]
        except ValueError:
            found = []
        if not name or not found:
            raise DataError(f"{index}:{number}: a path and its labels were expected, and not {line!r:.80}")
        ids.append(_checked(f"{index}:{number}", root, name))
        labels.append(found)
    names = entry.get("labelmap")
    if names is None:
        return ids, labels, [str(label) for label in range(entry.get("num_classes") or 1 + max(map(max, labels)))]
    path = root / checked_path(index, root, str(names))
    names = [line.strip() for line in _text(path) if line.strip()]
    if entry.get("num_classes") not in (None, len(names)):
        raise DataError(f"{path} names {len(names)} classes, and vision_datasets.json says {entry['num_classes']}")
    return ids, labels, names


def _checked(location, root, name):
    """An id whose archive lies below the root and whose member does not leave the archive."""
    if ".zip@" not in name:
        return checked_path(location, root, name)
    archive, _, member = name.partition(".zip@")
    checked_path(location, root, member)
    if member.startswith("/"):
        raise DataError(f"{location}: the member {member!r:.80} leaves its archive")
    return f"{checked_path(location, root, archive + '.zip')}@{member}"


def _coco(index, root, entry):
    """The same of a COCO-style index, whose category ids begin with 1."""
    value, location = _json(index, dict), str(index)
    try:
        ids = {}
        for image in value["images"]:
            archive = image.get("zip_file")
            ids[image["id"]] = _checked(
                location, root, f"{archive}@{image['file_name']}" if archive else image["file_name"]
            )
        labels = {key: [] for key in ids}
        for annotation in value["annotations"]:
            labels[annotation["image_id"]].append(int(annotation["category_id"]) - 1)
        names = {int(c["id"]) - 1: whole_text(str(c["name"])) for c in value.get("categories", [])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{index}: not of the COCO form ({type(error).__name__}: {error})") from None
    unlabelled = [ids[key] for key, found in labels.items() if not found]
    if unlabelled:
        raise DataError(f"{index}: {len(unlabelled)} images have no annotation; the first: {unlabelled[0]}")
    count = entry.get("num_classes") or (max(names) + 1 if names else 1 + max(map(max, labels.values())))
    return list(ids.values()), list(labels.values()), [names.get(label, str(label)) for label in range(count)]


def _matrix(labels, C, entry, index):
    """int64 (N,), or bool (N, C) where images have several labels."""
    if entry.get("type") != MULTI_LABEL:
        several = next((i for i, found in enumerate(labels) if len(found) != 1), None)
        if several is not None:
            raise DataError(f"{index}: image {several + 1} has {len(labels[several])} labels, where one is expected")
        return np.array([found[0] for found in labels], dtype=np.int64)
    matrix = np.zeros((len(labels), C), dtype=bool)
    for row, found in enumerate(labels):
        if not all(0 <= label < C for label in found):
            raise DataError(f"{index}: image {row + 1} has a label that is not one of 0 to {C - 1}")
        matrix[row, found] = True
    return matrix
