"""Reads the weights of a TorchScript archive, the form of OpenAI's CLIP files, as data: none of its code runs.

The archive is a zip: <name>/data.pkl describes the tree of modules, <name>/data/<key> holds each storage's bytes.
The pickle may name five things: module classes (a bare `Module` stands in for all), tensors, ordered dicts, typed
lists and storage types. Anything else is refused.
"""

import pickle
import zipfile
from collections import OrderedDict
from math import prod

import torch

from clip_vl.engine.errors import DataError

MAX_PICKLE_BYTES = 4 * 2**20  # an RN50 takes about 100 kB
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class Refused(Exception):
    """The pickle names something that is not data."""


def check_archive(path):
    """Refuse a zip with a damaged directory, or whose entries are compressed or claim more bytes than the file has.

    PyTorch compresses only the source code of TorchScript archives, which nobody here reads.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if "/code/" not in entry.filename]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is not a whole checkpoint ({error}); fetch it again") from error
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
    if compressed or sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise DataError(f"{path}: refused: its entries unpack to more bytes than the file has")


def is_torchscript(path):
    """Only TorchScript archives carry a table of constants."""
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def read_torchscript(path):
    """Parameter and buffer name -> tensor, as `torch.jit.load(path).state_dict()` would give."""
    try:
        with zipfile.ZipFile(path) as archive:
            root = next(name for name in archive.namelist() if name.endswith("/data.pkl")).removesuffix("data.pkl")
            if archive.getinfo(root + "data.pkl").file_size > MAX_PICKLE_BYTES:
                raise DataError(f"{path}: refused: its data.pkl is larger than {MAX_PICKLE_BYTES // 2**20} MiB")
            with archive.open(root + "data.pkl") as file:
                return dict(_tensors(_Reader(file, archive, root).load()))
    except Refused as error:
        raise DataError(f"{path}: refused: it tries to run code ({error})") from error
    except DataError:
        raise
    except Exception as error:  # whatever a damaged stream of opcodes leads to
        raise DataError(f"{path} is not a whole TorchScript archive ({error!r}); fetch it again") from error


class Module:
    """Stands in for every TorchScript class: a bag of attributes."""

    def __setstate__(self, state):
        vars(self).update((str(name), value) for name, value in state.items())


def _tensors(root):
    """Walk the modules; yields (dotted name, tensor). Each module is entered once, so cycles end."""
    pending, seen = [("", root)], set()
    while pending:
        prefix, module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for name, value in vars(module).items():
            if isinstance(value, torch.Tensor):
                yield prefix + name, value
            elif isinstance(value, Module):
                pending.append((f"{prefix}{name}.", value))


class _Reader(pickle._Unpickler):
    """The Python unpickler (where a huge memo index is just a key), restricted to data."""

    def __init__(self, file, archive, root):
        super().__init__(file)
        self.archive, self.root, self.storages = archive, root, {}

    def find_class(self, module, name):
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if module == "torch._utils" and name == "_rebuild_tensor_v2":
            return _tensor
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return list
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        raise Refused(f"it names {module}.{name}"[:200])

    def persistent_load(self, pid):
        """("storage", dtype, key, device, number of elements) -> flat tensor, one per key."""
        _, dtype, key, _, numel = pid
        if key not in self.storages:
            content = bytearray(self.archive.read(f"{self.root}data/{key}"))
            self.storages[key] = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        storage = self.storages[key]
        if storage.dtype != dtype or storage.numel() != numel:
            raise ValueError(f"storage {key} has {storage.numel()} elements, not {numel}")
        return storage


def _tensor(storage, offset, size, stride, *_):
    """The view of a storage that torch.as_strided bounds; never more elements than the storage has."""
    if prod(size) > storage.numel():
        raise ValueError(f"a tensor of shape {size} needs more than the {storage.numel()} stored elements")
    return storage.as_strided(size, stride, offset)
