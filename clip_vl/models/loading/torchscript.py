"""Reads the weights of a TorchScript archive, the form of OpenAI's CLIP files, as data: none of its code runs.

The archive is a zip: <name>/data.pkl describes the tree of modules, <name>/data/<key> holds each storage's bytes.
Besides what pickled_tensors.py reads, the pickle may name module classes (a bare `Module` stands in for all) and typed
lists.
"""

import zipfile

import torch

from clip_vl.engine.errors import DataError
from clip_vl.models.loading.pickled_tensors import NotData, NotPlain, ZipReader, _list, check_archive


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
