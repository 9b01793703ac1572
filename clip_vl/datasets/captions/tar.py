"""WebDataset shards: members of one key (`000042.jpg`, `000042.txt`, `000042.cls`) are a row; plain tar files only.

The members of a key may be anywhere in one shard. The offset of every image is indexed once, and images are then read
at random positions, so that rows are shuffled, weighted and resumed as those of any other source. Captions are in .txt,
or under "caption" in .json.
"""

import hashlib
import itertools
import os
import posixpath
from pathlib import Path

import numpy as np

from clip_vl.datasets.captions.sidecars import MAX_TEXT, sidecar_captions, sidecar_text
from clip_vl.datasets.captions.source import is_remote
from clip_vl.datasets.captions.table import FORMAT, CaptionTable, Record, TableWriter
from clip_vl.datasets.captions.tar_index import iterate_members
from clip_vl.datasets.captions.tar_names import MAX_SHARDS, expand_braces
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.images.files import EXTENSIONS, is_hidden, readable_extensions
from clip_vl.datasets.storage.cache import build_once
from clip_vl.datasets.storage.columns import ColumnWriter, read_column
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.datasets.storage.left_out import report_left_out
from clip_vl.datasets.storage.tables import number_in
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.text import raw_bytes

MAX_IMAGE = 1 << 28  # bytes
HEAD, TAIL = 1 << 20, 1 << 16  # bytes of a file that go into its digest
BATCH = 8192


def open_shards(spec, cache_root, max_left_out=1.0):
    """The rows of the shards that `a-{000..010}.tar` names, or several such joined by `::`, in this order.

    max_left_out: the share of keys that may be incomplete; DataError above it
    """
    shards = list(itertools.chain.from_iterable(map(expand_braces, spec.split("::"))))
    if len(shards) > MAX_SHARDS:
        raise UserError(f"{spec!r:.80} names {len(shards):,} shards; the limit is {MAX_SHARDS:,}")
    digest = digest_of({"format": FORMAT, "shards": [quick_digest(shard) for shard in shards]})
    folder = build_once(cache_root, "shards", digest, lambda folder: _index(folder, shards))
    source = ShardSource(folder, digest, shards)
    reasons = {
        "no image of the key in its shard": (source.meta["without_image"], ""),
        "no caption of the image in its shard": (source.meta["without_caption"], ""),
    }
    report_left_out(spec, reasons, len(source), max_left_out, noun="keys")
    if doubled := source.meta["doubled"]:
        dist.print0(f"warning: {spec}: {doubled:,} members have the name of an earlier one of their shard; "
                    "the last one counts, as where a tar file is unpacked")  # fmt: skip
    return source


def _incomplete(counts):
    without_image, without_caption = counts["without_image"], counts["without_caption"]
    return f"{without_image:,} keys without an image and {without_caption:,} images without a caption"


def quick_digest(path):
    """A digest of a large file by its size, modification time, beginning and end."""
    if is_remote(str(path)):
        raise UserError(f"{path} is a remote address, and training fetches nothing: download it and name the file")
    try:
        with Path(path).open("rb") as file:
            status = os.fstat(file.fileno())
            ends = os.pread(file.fileno(), HEAD, 0) + os.pread(file.fileno(), TAIL, max(status.st_size - TAIL, 0))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    return hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} ".encode() + ends).hexdigest()


def _index(folder, shards):
    from tqdm import tqdm

    columns = ("shard", "offset", "size")
    writer = TableWriter(folder, dict.fromkeys(columns, (ColumnWriter, np.int64)))
    counts = {"without_image": 0, "without_caption": 0, "doubled": 0}
    for number, shard in enumerate(tqdm(shards, "indexing shards", disable=None)):
        rows = list(_rows(shard, counts))
        for start in range(0, len(rows), BATCH):
            records, images = zip(*rows[start : start + BATCH])
            places = {"offset": [image.offset for image in images], "size": [image.size for image in images]}
            writer.extend(records, shard=[number] * len(images), **places)
    if not writer.rows:
        raise DataError(f"{shards[0]} ({len(shards)} shards) holds no image with a caption, NAME.jpg with NAME.txt or "
                        f"NAME.json: {_incomplete(counts)} in the same shard")  # fmt: skip
    writer.close(**counts)


def _rows(shard, counts):
    """Yield (Record, Member of the image) in the order of the keys' first members, and count what is left out."""
    for key, groups in _by_key(shard, counts).items():
        found = {part: _row(shard, key, members) for part, members in groups.items()}
        yield from filter(None, found.values())
        if not found.get(""):  # with a whole one, what is called 0001.mask.png belongs to 0001 and is not used
            for members in (groups[part] for part, row in found.items() if row is None):
                if _image(members):
                    counts["without_caption"] += 1
                elif members.keys() & {".txt", ".json", ".cls"}:
                    counts["without_image"] += 1


def _by_key(shard, counts):
    """{key: {part: {extension: Member}}}: a key ends at the first dot of a file's name, its part at the last one."""
    found = {}
    for member in iterate_members(shard):
        path = posixpath.normpath(member.name)
        if member.name.endswith("/") or any(is_hidden(name) for name in path.split("/") if name != ".."):
            continue
        folder, slash, file = path.rpartition("/")
        stem, extension = posixpath.splitext(file)
        key, _, part = stem.partition(".")
        members = found.setdefault(f"{folder}{slash}{key}", {}).setdefault(part, {})
        counts["doubled"] += extension.lower() in members
        members[extension.lower()] = member
    return found


def _image(members):
    known = (extension for extension in EXTENSIONS if extension in members and extension in readable_extensions())
    return members.get(next(known, None))


def _row(shard, key, members):
    """(Record, Member of the image) of {extension: Member}, or None."""
    image = _image(members)
    texts = [extension for extension in (".txt", ".json") if extension in members]
    if image is None or not texts:
        return None
    if image.size > MAX_IMAGE:
        raise DataError(f"{shard}: {image.name!r:.80} has {image.size:,} bytes; an image may have {MAX_IMAGE:,}")
    captions = next(filter(None, (sidecar_captions(*_read(shard, members[each]), each) for each in texts)), None)
    try:
        label = number_in(sidecar_text(*_read(shard, members[".cls"]))) if ".cls" in members else -1
    except ValueError as error:
        raise DataError(f"{shard}: {key!r:.80}: {error}") from None
    return captions and (Record(image.name, captions, label), image)


def _read(shard, member):
    """(what messages call a member, its bytes up to one more than a text may have)."""
    return f"{shard}: {member.name!r:.80}", _pread(shard, member.offset, min(member.size, MAX_TEXT + 1))


def _pread(path, offset, size):
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (a descriptor is all that is used)
        return os.pread(file.fileno(), size, offset)


class ShardSource(CaptionTable):
    """Images by shard and offset. Holds no open file."""

    image_files = False

    def __init__(self, folder, digest, shards):
        super().__init__(folder, digest, ".")
        self.shards = list(shards)
        self.shard, self.offset, self.size = (read_column(folder, name) for name in ("shard", "offset", "size"))

    def __reduce__(self):
        return type(self), (self.folder, self.digest, self.shards)

    def name(self, row):
        return f"{self.shards[self.shard[row]]}:{self.paths[row]}"

    def image_id(self, row):
        location = f"{self.shards[self.shard[row]]}:{self.offset[row]}"
        return int.from_bytes(hashlib.blake2b(raw_bytes(location), digest_size=8).digest(), "little") >> 1

    def read(self, row):
        size = int(self.size[row])
        try:
            data = _pread(self.shards[self.shard[row]], int(self.offset[row]), size)
        except OSError as error:
            raise DamagedImage(self.name(row), f"cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise DamagedImage(
                self.name(row), f"has {len(data):,} of {size:,} bytes: the shard was changed while in use"
            )
        return data
