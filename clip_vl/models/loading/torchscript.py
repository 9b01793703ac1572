"""Reads the weights of a TorchScript archive, the form of OpenAI's CLIP files, as data: none of its code runs.

The archive is a zip: <name>/data.pkl describes the tree of modules, <name>/data/<key> holds each storage's bytes.
Besides what pickled_tensors.py reads, the pickle may name module classes (a bare `Module` stands in for all) and typed
lists.
"""

import zipfile

import torch

from clip_vl.engine.errors import DataError
from clip_vl.models.loading.pickled_tensors import NotData, NotPlain, ZipReader, _list


def check_archive(path):
    """The folder "<name>/" in a zip file of torch's. DataError for a damaged directory, for doubled names, and for
    entries that are compressed or claim more bytes than the file has.

    PyTorch compresses only the source code of TorchScript archives, <name>/code/, which nobody here reads.
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


def is_archive(path):
    """Whether a file is a TorchScript archive: of torch's zip files these alone carry a table of constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def read_torchscript(path):
    """Parameter and buffer name -> tensor, as `torch.jit.load(path).state_dict()` would give."""
    root = check_archive(path)
    try:
        with zipfile.ZipFile(path) as archive:
            return dict(_tensors(_Reader(archive, root, path.stat().st_size).load()))
    except NotData as error:
        raise DataError(f"{path}: refused: it tries to run code (it names {error})") from error
    except NotPlain as error:
        raise DataError(f"{path}: refused: it holds {error}; plain tensors alone are read") from None
    except Exception as error:  # whatever a damaged stream of opcodes leads to
        raise DataError(f"{path} is not a whole TorchScript archive ({error!r:.200}); fetch it again") from error


class Module:
    """Stands in for every TorchScript class: a bag of attributes."""


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


class _Reader(ZipReader):
    """Adds module classes and typed lists."""

    def find_class(self, module, name):
        if module == "__torch__" or module.startswith("__torch__."):
            return Module
        if module == "torch.jit._pickle" and name in ("build_intlist", "build_doublelist", "build_boollist"):
            return _list
        return super().find_class(module, name)

    def build(self, value, state):
        if isinstance(value, Module):
            vars(value).update((str(name), part) for name, part in state.items())
        else:
            super().build(value, state)
