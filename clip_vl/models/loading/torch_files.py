"""Reads what torch.save wrote, as data: a zip file, or the consecutive pickles and storages of PyTorch before 1.6.

torch.load(weights_only=True) would run no code either, but it unpacks compressed storages, believes the sizes that a
file states, and makes tensors of kinds that no model here can use.
"""

import sys
import zipfile
from pathlib import Path

import torch

from clip_vl.engine.errors import DataError
from clip_vl.models.loading.pickled_tensors import (
    MAX_PICKLE_BYTES,
    NotData,
    NotPlain,
    TensorUnpickler,
    ZipReader,
    check_archive,
)

ZIP_START = b"PK\x03\x04"
MAGIC, VERSION = 0x1950A86A20F9469CFC6C, 1001


def is_zip(path):
    """Whether a file begins as torch's zip files do."""
    with Path(path).open("rb") as file:
        return file.read(4) == ZIP_START


def read_torch(path, extend=lambda reader: reader):
    """The dicts, lists, numbers, texts and CPU tensors that a file of torch.save holds; DataError for anything else.

    extend: class of unpickler -> the one that is used, such as `stubbed.with_stubs`
    """
    path = Path(path)
    try:
        return _read_zip(path, extend(ZipReader)) if is_zip(path) else _read_legacy(path, extend(_Legacy))
    except NotData as error:
        raise DataError(
            f"{path}: refused: it tries to run code, {error}, where weights alone are read; "
            "ask its author for a .safetensors file"
        ) from None
    except NotPlain as error:
        raise DataError(f"{path}: refused: it holds {error}; plain tensors alone are read") from None
    except DataError:
        raise
    except Exception as error:  # whatever a damaged stream of opcodes leads to
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not a torch checkpoint, or not a whole one ({reason}); fetch it again") from error


def _read_zip(path, reader):
    root = check_archive(path)
    with zipfile.ZipFile(path) as archive:
        order = f"{root}byteorder"
        if order in archive.namelist() and archive.getinfo(order).file_size < 10 and archive.read(order) == b"big":
            raise NotPlain("numbers in big-endian byte order")
        return reader(archive, root, path.stat().st_size).load()


def _read_legacy(path, reader):
    with path.open("rb") as file:
        head = [_Legacy(file).load() for _ in range(3)]
        if head[:2] != [MAGIC, VERSION] or not isinstance(head[2], dict):
            raise ValueError("no known magic number")
        if not head[2].get("little_endian", True):
            raise NotPlain("numbers in big-endian byte order")
        reader = reader(file, path.stat().st_size)
        content = reader.load()
        keys = _Legacy(file).load()
        if not isinstance(keys, list) or sorted(keys) != sorted(reader.storages):
            raise ValueError("its list of storages is not the one of its tensors")
        for key in keys:
            _fill(reader.storages[key], file)
        return content


def _fill(storage, file):
    """Read a storage: the number of its elements (8 bytes), then its values."""
    if int.from_bytes(file.read(8), sys.byteorder) != storage.numel():
        raise ValueError("a storage is not of the size that its tensors state")
    values = memoryview(storage.view(torch.uint8).numpy())
    if file.readinto(values) < len(values):
        raise ValueError("the file ends inside a storage")


class _Legacy(TensorUnpickler):
    """Storages are made empty, and filled from what follows in the file; all together are no larger than the file."""

    def __init__(self, file, size=0):
        super().__init__(_Bounded(file))
        self.left, self.storages = size, {}

    def persistent_load(self, pid):
        kind, dtype, key, _, numel, view = pid
        if kind != "storage" or not isinstance(key, str) or not isinstance(numel, int) or numel < 0:
            raise ValueError("a storage is not of the expected form")
        if key not in self.storages:
            self.left -= numel * dtype.itemsize
            if self.left < 0:
                raise NotPlain("storages that state more bytes than the file has")
            self.storages[key] = torch.empty(numel, dtype=dtype)
        storage = self.storages[key]
        if storage.dtype != dtype or storage.numel() != numel:
            raise ValueError("a storage is stated in two ways")
        return storage if view is None else storage[view[1] : view[1] + view[2]]


class _Bounded:
    """What the unpickler may read of a file."""

    def __init__(self, file):
        self.file, self.left = file, MAX_PICKLE_BYTES

    def read(self, size):
        return self._counted(self.file.read(min(size, self.left + 1)))

    def readline(self):
        return self._counted(self.file.readline(self.left + 1))

    def _counted(self, data):
        self.left -= len(data)
        if self.left < 0:
            raise NotPlain(f"a description larger than {MAX_PICKLE_BYTES // 2**20} MiB")
        return data
