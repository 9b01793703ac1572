"""Reads pickles of tensors as data, nothing in them runs: what torch.save files and TorchScript archives share.

A pickle may name tensors, parameters, ordered dicts, data types and storage types. Anything else is refused, and so is
every tensor that is not plain: sparse, quantized, complex, without values, or with elements that share memory.
"""

import pickle
import zipfile
from collections import OrderedDict

import torch

from clip_vl.engine.errors import DataError

MAX_PICKLE_BYTES = 16 * 2**20  # an RN50 takes about 100 kB
STORAGES = {
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "DoubleStorage": torch.float64,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "UntypedStorage": torch.uint8,
}
REFUSED_KINDS = {"sparse": "sparse", "_qtensor": "quantized", "complex": "complex", "qint": "quantized",
                 "_meta_": "meta", "nested": "nested"}  # fmt: skip
UNUSED_OPCODES = (pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.PERSID, pickle.EXT1, pickle.EXT2, pickle.EXT4,
                  pickle.EMPTY_SET, pickle.ADDITEMS, pickle.FROZENSET, pickle.BYTEARRAY8, pickle.NEXT_BUFFER,
                  pickle.READONLY_BUFFER)  # fmt: skip


class NotData(Exception):
    """The pickle names something that is not data; the message is its name."""


class NotPlain(Exception):
    """The pickle holds a tensor of a kind that is not read; the message says which."""


class TensorUnpickler(pickle._Unpickler):
    """The Python unpickler (where a huge memo index is just a key), restricted to data.

    A subclass finds the storages: persistent_load(("storage", dtype, key, device, elements)) -> flat tensor.
    """

    dispatch = {code: load for code, load in pickle._Unpickler.dispatch.items() if bytes([code]) not in UNUSED_OPCODES}

    def __init__(self, file):
        super().__init__(file, encoding="utf-8")

    def find_class(self, module, name):
        if module in ("torch", "torch.cuda", "torch.storage") and name in STORAGES:
            return STORAGES[name]
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        if (module, name) in BUILDERS:
            return BUILDERS[module, name]
        if module.partition(".")[0] == "torch":
            for part, kind in REFUSED_KINDS.items():
                if part in name.lower():
                    raise NotPlain(f"a {kind} tensor")
        raise NotData(f"{module}.{name}"[:200])

    def load_build(self):
        state = self.stack.pop()
        self.build(self.stack[-1], state)

    def load_keyed(self, load):
        """Load a dict's items. A key of nested tuples would be hashed by a recursion that nothing bounds."""
        for key in self.stack[-2:-1] if load is pickle._Unpickler.load_setitem else self.stack[::2]:
            check_key(key)
        load(self)

    def build(self, value, state):
        """Give a loaded object its attributes; those of an ordered dict (module versions) are not needed."""
        if not isinstance(value, OrderedDict):
            raise NotData(f"the attributes of a {type(value).__name__}")

    dispatch[pickle.BUILD[0]] = load_build
    for _code in (pickle.SETITEM, pickle.SETITEMS, pickle.DICT):
        dispatch[_code[0]] = lambda self, load=dispatch[_code[0]]: self.load_keyed(load)


def check_key(key):
    """ValueError unless a dict key is a plain value."""
    if not isinstance(key, str | int | float | bytes | None):
        raise ValueError(f"a {type(key).__name__} is a dict key")


def _list(values=()):
    """A copy of a list: what else could be iterated, such as a large tensor, is refused."""
    if not isinstance(values, list | tuple):
        raise ValueError(f"a list of a {type(values).__name__}")
    return list(values)


def _ordered_dict(pairs=()):
    pairs = [(key, value) for key, value in _list(pairs)]
    for key, _ in pairs:
        check_key(key)
    return OrderedDict(pairs)


def _size(values):
    return tuple(_list(values))


def _bytes(text, encoding):
    """How protocol 2 writes bytes."""
    if encoding != "latin1":
        raise ValueError(f"bytes as {encoding!r:.40}")
    return text.encode("latin1")


def _tensor(storage, offset, size, stride, requires_grad=False, hooks=None, metadata=None):
    """The view of a storage; as_strided refuses what lies outside of it, and no element may be shown twice."""
    numbers = (offset, *_list(size), *_list(stride))
    if metadata or not all(type(number) is int for number in numbers):
        raise ValueError("a tensor's shape is not made of whole numbers")
    refuse_overlap(size, stride)
    return storage.as_strided(size, stride, offset)


def refuse_overlap(size, stride):
    """NotPlain for a view that shows an element twice: a few bytes could stand for terabytes."""
    reach = 0
    for step, count in sorted(zip(stride, size, strict=True)):
        if count > 1 and step <= reach:
            raise NotPlain(f"a tensor of shape {tuple(size)} whose elements share memory (expanded; strides {stride})")
        reach += step * max(count - 1, 0)


def _tensor_of_dtype(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    if dtype.is_complex:
        raise NotPlain("a complex tensor")
    return _tensor(storage.view(dtype), offset, size, stride, metadata=metadata)


def _parameter(data, *_):
    return data


def _of_type(build, kind, values, state):
    """A tensor with Python attributes, which are left out."""
    if build not in BUILDERS.values() or kind not in ("Tensor", "Parameter"):
        raise NotPlain("a tensor of a class of its own")
    return build(*values)


BUILDERS = {
    ("collections", "OrderedDict"): _ordered_dict,
    ("torch", "Size"): _size,
    ("torch", "Tensor"): "Tensor",
    ("torch", "device"): lambda *values: "cpu",
    ("torch.nn.parameter", "Parameter"): "Parameter",
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_of_dtype,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _of_type,
    ("_codecs", "encode"): _bytes,
}


def check_archive(path):
    """The folder "<name>/" in a zip file of torch's. DataError for a damaged directory, for doubled names, and for
    entries that are compressed or claim more bytes than the file has.

    PyTorch compresses only the source code of TorchScript archives, <name>/code/, which is never read here.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{path} is not a whole checkpoint ({error}); fetch it again") from error
    names = [entry.filename for entry in entries]
    root = next((name[:-8] for name in names if name.endswith("/data.pkl") and name.count("/") == 1), "")
    read = [e for e in entries if not (root + "constants.pkl" in names and e.filename.startswith(root + "code/"))]
    compressed = any(entry.compress_type != zipfile.ZIP_STORED for entry in read)
    if compressed or sum(entry.file_size for entry in read) > path.stat().st_size:
        raise DataError(f"{path}: refused: its entries unpack to more bytes than the file has")
    if len(set(names)) < len(names):
        raise DataError(f"{path}: refused: two of its entries have one name")
    if not root:
        raise DataError(f"{path} is a zip file without a data.pkl, so no checkpoint")
    return root


class ZipReader(TensorUnpickler):
    """Reads data.pkl of a zip file as torch writes it, with each storage a stored entry <root>data/<key> beside it."""

    def __init__(self, archive, root, size):
        """size: of the file in bytes; no more than that is read, even where entries lie over each other."""
        self.archive, self.root, self.left, self.storages = archive, root, size, {}
        info = archive.getinfo(root + "data.pkl")
        if info.file_size > MAX_PICKLE_BYTES:
            raise NotPlain(f"a data.pkl larger than {MAX_PICKLE_BYTES // 2**20} MiB")
        self._take(info)
        super().__init__(archive.open(info))

    def persistent_load(self, pid):
        """("storage", dtype, key, device, number of elements) -> flat tensor, one per key."""
        _, dtype, key, _, numel = pid
        if not isinstance(key, str):
            raise ValueError("a storage's key is not text")
        if key not in self.storages:
            self.storages[key] = self._storage(self.archive.getinfo(f"{self.root}data/{key}"), dtype)
        storage = self.storages[key]
        if storage.dtype != dtype or storage.numel() != numel:
            raise ValueError(f"storage {key[:80]} has {storage.numel()} elements of {storage.dtype}")
        return storage

    def _storage(self, info, dtype):
        self._take(info)
        content = bytearray(info.file_size)
        with self.archive.open(info) as file:
            if file.readinto(content) < len(content):
                raise ValueError("an entry is cut short")
        return torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)

    def _take(self, info):
        self.left -= info.file_size
        if info.compress_type != zipfile.ZIP_STORED or self.left < 0:
            raise NotPlain("entries that unpack to more bytes than the file has")
