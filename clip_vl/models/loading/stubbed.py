"""Torch checkpoints whose pickles also name classes of other libraries: the tensors are read, the classes never run."""

import pickle
from collections import OrderedDict
from types import SimpleNamespace

import torch

from clip_vl.engine.errors import DataError, UserError

TORCH_NAMES = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter"}


class Stub:
    """Stands for an object of a class that is not loaded: accepts whatever a pickle does to it and does nothing."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __call__(self, *args, **kwargs):
        return self

    def __setitem__(self, key, value):
        pass

    def __setstate__(self, state):
        pass

    def append(self, value):
        pass

    extend = add = update = append


class StubbingUnpickler(pickle.Unpickler):
    """Builds tensors and plain containers; every other class or function that the pickle names becomes `Stub`."""

    def find_class(self, module, name):
        if module == "torch._utils" and name in TORCH_NAMES:
            return getattr(torch._utils, name)
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        found = getattr(torch, name, None) if module == "torch" else None
        if isinstance(found, torch.dtype) or found is torch.Size or (name.endswith("Storage") and found is not None):
            return found
        return Stub


def load_with_stubs(path):
    """The content of a torch checkpoint on the CPU, as nested dicts and tensors with `Stub`s between them.

    raises: UserError for a missing file, DataError for one that is no torch checkpoint
    """
    reader = SimpleNamespace(Unpickler=StubbingUnpickler, load=lambda file, **options: StubbingUnpickler(file).load(),
                             __name__="stubbing pickle")  # fmt: skip
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing") from error
    except Exception:  # a class of another library, or a damaged file: the second reader tells which
        pass
    try:
        return torch.load(path, map_location="cpu", weights_only=False, pickle_module=reader)
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise DataError(f"{path} is not a whole torch checkpoint ({reason}); fetch it again") from error


def nested_tensors(content, path):
    """{name: tensor} of a checkpoint's "state_dict" or "model" entry; entries that are no tensors are left out."""
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    state = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise DataError(f"{path} holds no named weights; a state dict (parameter name -> tensor) is needed")
    return state
