"""Read the state dict of a weight file that others wrote: as data, never as code."""

import zipfile
from pathlib import Path

import torch

from clip_vl.engine.errors import DataError, UserError


def read_state_dict(path, hint=""):
    """Parameter name -> tensor on the CPU from a .safetensors file, a torch checkpoint or a TorchScript archive.

    Nothing in the file runs. A "state_dict" or "model" entry is unwrapped, one leading "module." (distributed
    training) and every "_orig_mod." (torch.compile) removed, and BERT's old gamma and beta become weight and bias.
    `hint` ends the error for a missing file: where it comes from and the flag that points to it.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing. {hint}".rstrip())
    state = _read(path)
    state = {key.replace("_orig_mod.", ""): tensor for key, tensor in _unwrap(state, path).items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): tensor for key, tensor in state.items()}
    return {_modern_name(key): tensor for key, tensor in state.items()}


def is_archive(path):
    """Whether a file is a TorchScript archive: of torch's zip files these alone carry a table of constants."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False


def _read(path):
    """What a file holds, by the reader of its format."""
    if path.suffix == ".safetensors":
        from clip_vl.engine.readers.tensor_files import read_safetensors as read
    elif is_archive(path):
        from clip_vl.models.loading.torchscript import read_torchscript as read
    else:
        from clip_vl.models.loading.torch_files import read_torch as read
    return read(path)


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
