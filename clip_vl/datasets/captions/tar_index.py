"""The members of a tar file, from its headers alone: nothing is unpacked, no link is followed, names are only keys.

Reads ustar, GNU and pax archives. A tar file is foreign bytes: every size is checked against the file and a budget
before anything of it is read.
"""

import os
from typing import NamedTuple

from clip_vl.engine.errors import DataError, UserError

BLOCK = 512
MAX_NAME = 1 << 16  # bytes of a long name or a pax header
REGULAR = (b"0", b"\0", b"7")
LONG_NAME, PAX = b"L", b"x"
COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}


class Member(NamedTuple):
    name: str
    offset: int  # of the content
    size: int


def iterate_members(path):
    """Yield the regular files of an archive; links, folders, devices and sparse files are passed over.

    Raises UserError for a file that cannot be read or is compressed, DataError for one that is no whole archive.
    """
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 (a descriptor is all that is used)
            yield from _members(path, file.fileno(), os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None


def _members(path, descriptor, total):
    position, overrides = 0, {}
    while True:
        header = os.pread(descriptor, BLOCK, position)
        if position == 0:
            _refuse_compressed(path, header)
        if len(header) < BLOCK:
            raise DataError(f"{path} ends at byte {total:,} without the end of an archive; was it cut short?")
        if not header.strip(b"\0"):
            return
        name, size, kind = _parse(path, position, header)
        if kind in REGULAR:
            name, size = overrides.get("path", name), overrides.get("size", size)
        content = position + BLOCK
        if size > total - content:
            raise DataError(
                f"{path}: {name!r:.80} declares {size:,} bytes, more than the file has left; was it cut short?"
            )
        if kind in (LONG_NAME, PAX):
            overrides |= _override(path, kind, descriptor, content, size)
        else:
            if kind in REGULAR and "sparse" not in overrides:
                yield Member(name, content, size)
            overrides = {}
        position = content + -(-size // BLOCK) * BLOCK


def _refuse_compressed(path, header):
    for magic, name in COMPRESSED.items():
        if header.startswith(magic):
            raise UserError(
                f"{path} is compressed ({name}); shards are read at random positions: unpack it to a plain .tar"
            )


def _parse(path, position, header):
    """(name, size, type) of a header."""
    unsigned = sum(header[:148]) + 8 * ord(" ") + sum(header[156:])
    try:
        if _number(header[148:156]) != unsigned:
            raise ValueError
        size = _number(header[124:136])
    except ValueError:
        raise DataError(f"{path}: there is no header of a tar file at byte {position:,}; is it damaged?") from None
    name = _text(header[:100])
    if header[257:263] == b"ustar\0" and (prefix := _text(header[345:500])):
        name = f"{prefix}/{name}"
    return name, size, header[156:157]


def _number(field):
    """An octal number, or a binary one of GNU's form; ValueError for a negative one."""
    if field[0] & 0x80:
        if field[0] != 0x80:
            raise ValueError
        return int.from_bytes(field[1:], "big")
    digits = field.strip(b"\0 ")
    return int(digits, 8) if digits.isdigit() else _zero(digits)


def _zero(digits):
    if digits:
        raise ValueError
    return 0


def _text(field):
    return field.split(b"\0", 1)[0].decode("utf-8", errors="replace")


def _override(path, kind, descriptor, content, size):
    """What a GNU long name or a pax header says of the member that follows."""
    if size > MAX_NAME:
        raise DataError(f"{path}: a name of {size:,} bytes at byte {content:,}; the limit is {MAX_NAME:,}")
    data = os.pread(descriptor, size, content)
    if kind == LONG_NAME:
        return {"path": _text(data)}
    try:
        return _pax(data)
    except (ValueError, IndexError):
        raise DataError(f"{path}: the pax header at byte {content:,} is damaged") from None


def _pax(data):
    """Records "length key=value\\n", of which path, size and the marks of sparse files matter."""
    found = {}
    while data:
        length = int(data.split(b" ", 1)[0])
        record, data = data[:length], data[length:]
        if length < 5 or len(record) < length or not record.endswith(b"\n"):
            raise ValueError
        key, _, value = record[:-1].split(b" ", 1)[1].partition(b"=")
        if key == b"path":
            found["path"] = _text(value)
        elif key == b"size":
            found["size"] = int(value)
            if found["size"] < 0:
                raise ValueError
        elif key.startswith(b"GNU.sparse"):
            found["sparse"] = True
    return found
