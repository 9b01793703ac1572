"""Read the state dict of a weight file that others wrote: as data, never as code."""

from pathlib import Path

import torch

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.tensor_files import read_safetensors
from clip_vl.models.loading.torch_files import read_torch
from clip_vl.models.loading.torchscript import is_archive, read_torchscript


def read_state_dict(path, hint=""):
    """Parameter name -> tensor on the CPU from a .safetensors file, a torch checkpoint or a TorchScript archive.

    Nothing in the file runs. A "state_dict" or "model" entry is unwrapped, one leading "module." (distributed
    training) and every "_orig_mod." (torch.compile) removed, and BERT's old gamma and beta become weight and bias.
    `hint` ends the error for a missing file: where it comes from and the flag that points to it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing. {hint}".rstrip())
    if path.suffix == ".safetensors":
        state = read_safetensors(path)
    else:
        state = read_torchscript(path) if is_archive(path) else read_torch(path)
    state = {key.replace("_orig_mod.", ""): tensor for key, tensor in _unwrap(state, path).items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return {_modern_name(key): tensor for key, tensor in state.items()}


def _unwrap(state, path):
    for wrapper in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    if not isinstance(state, dict) or not state:
        raise DataError(f"{path} holds no named weights; a state dict (parameter name -> tensor) is needed")
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise DataError(f"{path}: entry {str(key)[:80]!r} is a {type(value).__name__}, where a tensor is needed")
        if value.is_complex():
            raise DataError(f"{path}: entry {key[:80]!r} is a complex tensor, where real numbers are needed")
    return state


def _modern_name(key):
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
