"""Torch checkpoints whose pickles also name classes of other libraries: the tensors are read, the classes never run."""

import torch

from clip_vl.engine.errors import DataError
from clip_vl.models.loading.pickled_tensors import NotData
from clip_vl.models.loading.torch_files import read_torch


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

    def append(self, value):
        pass

    extend = append


def with_stubs(reader):
    """A restricted unpickler that takes `Stub` for what it would refuse as code; other refusals stay."""

    class Stubbing(reader):
        def find_class(self, module, name):
            try:
                return super().find_class(module, name)
            except NotData:
                return Stub

        def build(self, value, state):
            if not isinstance(value, Stub):
                super().build(value, state)

    return Stubbing


def read_tensors_only(path):
    """{name: tensor} of a torch checkpoint's "state_dict" or "model" entry; what is no tensor is left out."""
    content = read_torch(path, with_stubs)
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    state = {k: v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, dict) else {}
    if not state:
        raise DataError(f"{path} holds no named weights; a state dict (parameter name -> tensor) is needed")
    return state
