"""Initialisation, and loading of weights from files that others wrote: read as data, matched name by name, reported."""

import hashlib
import re
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.tensor_files import read_safetensors
from clip_vl.models.clip.grid import GRID_ENCODERS, GridConfig
from clip_vl.models.clip.vit import ViTConfig
from clip_vl.models.loading.torch_files import read_torch
from clip_vl.models.loading.torchscript import is_archive, read_torchscript

OPENAI_SHA256 = {  # from https://openaipublic.azureedge.net/clip/models/<sha256>/<name>.pt
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "RN50x4": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
    "RN50x16": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
    "ViT-B-32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B-16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L-14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
}

# Parts of the published models that never reach an output, and the copy of the tied decoder: not built here.
UNUSED_KEYS = re.compile(
    r"(^|\.)(visual_model\.(visual\.(attnpool|proj)|positional_embedding|text_projection|logit_scale|token_embedding|ln_final"
    r"|transformer)|visn_fc\.box_(fc|layer_norm)|cls\.predictions\.decoder|embeddings\.position_ids)(\.|$)"
)

def init_weights(module, std=0.02):
    """BERT's: Linear and Embedding N(0, std), zero biases, identity LayerNorms.

    The convolutions and batch norms of the visual tower keep what they have: it may be CLIP's already.
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, (nn.Linear, nn.LayerNorm)):
            nn.init.zeros_(part.bias)


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


def load_weights(model, state, *, new=(), ignore=(), allow_partial=None, source="the checkpoint", hint=""):
    """Copy `state` (name -> tensor) into the model, converting to its dtypes; every name and shape must match.

    new:    prefixes of model names that the file need not have
    ignore: prefixes of file names that the model does not want, besides `UNUSED_KEYS`
    allow_partial: take what fits and return the table of what did not ("" when all did), instead of raising it; None
            where a program has no such flag
    hint:   for the error: the flags that help
    """
    own = model.state_dict()
    has_tower = any("visual_model." in key for key in own)  # a model of stored features has none
    unwanted = tuple(ignore)
    state = {k: v for k, v in state.items() if k in own or not (UNUSED_KEYS.search(k) or k.startswith(unwanted))}
    state = {k: v for k, v in state.items() if has_tower or "visual_model." not in k}
    fitting = OrderedDict((key, t) for key, t in state.items() if key in own and t.shape == own[key].shape)
    fitting._metadata = own._metadata  # the names are this version's (MNASNet refuses to load without a version)
    required = [key for key in own if not key.startswith(tuple(new))]
    table = mismatch_table(state, own, required)
    if table and not allow_partial:
        hint = hint or ("" if allow_partial is None else "--allow_partial loads what does")
        raise UserError(f"{source} does not fit the model{hint and f' ({hint})'}:", *table.split("\n"))
    model.load_state_dict(fitting, strict=False)
    return table


def mismatch_table(state, own, required, rows=20):
    """Names whose shapes differ, `required` ones missing from the file, and unexpected ones; "" when all match."""
    differences = []
    for key in sorted({*required, *state}):
        in_file = _shape(state.get(key), absent="missing")
        in_model = _shape(own.get(key), absent="unexpected")
        if in_file != in_model:
            differences.append((ascii(key[:120])[1:-1], in_file, in_model))  # foreign names, kept printable
    if not differences:
        return ""
    lines = [("key", "in the file", "in the model"), *differences[:rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(3)]
    text = "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)
    return text + (f"\n... and {len(differences) - rows} more" if len(differences) > rows else "")


def _shape(tensor, absent):
    return absent if tensor is None else str(tuple(tensor.shape))


def load_bert(model, folder, hint=""):
    """Load a BERT-shaped folder into the text parts of model.bert, and into model.cls what the file has for it.

    model:  VLPretrainer, VLClassifier or a VLEncoder itself
    folder: holds model.safetensors or pytorch_model.bin; old names (gamma, beta) and names without "bert." are fine.
            Layers of the file beyond the model's are left out.
    """
    folder = Path(folder)
    path = next((folder / n for n in ("model.safetensors", "pytorch_model.bin") if (folder / n).is_file()), None)
    if path is None:
        raise UserError(f"{folder} holds neither model.safetensors nor pytorch_model.bin. {hint}".rstrip())
    state = read_state_dict(path)
    encoder = getattr(model, "bert", model)
    text = _text_parts(state, depth=len(encoder.encoder.layer))
    load_weights(encoder, text, new=("encoder.vis", "encoder.x_layers.", "encoder.r_layers.", "pooler."), source=path)
    if hasattr(model, "cls"):
        heads = {key: tensor for key, tensor in state.items() if key.startswith("cls.")}
        load_weights(model, heads, new=("",), source=path)  # any part may be missing, none may differ


def _text_parts(state, depth):
    """Embeddings, pooler and the first `depth` layers of a BERT state dict, without a "bert." before their names."""
    prefix = "bert." if any(key.startswith("bert.") for key in state) else ""
    names = re.compile(re.escape(prefix) + r"(embeddings\..*|pooler\..*|encoder\.layer\.(\d+)\..*)")
    matches = ((names.fullmatch(key), tensor) for key, tensor in state.items())
    return {m[1]: tensor for m, tensor in matches if m and int(m[2] or 0) < depth}


def _modern_name(key):
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def load_clip_visual(tower, path, hint=""):
    """Load the visual part of a CLIP file (OpenAI's archive, open_clip's, safetensors) into a grid encoder.

    The text tower, the attention pool and the projection are left out. Half precision becomes the tower's precision.
    """
    state = read_state_dict(path, hint)
    found = detect_grid_encoder(state)
    if found is None:
        raise UserError(f"{path} holds none of CLIP's image towers that are known here: {', '.join(GRID_ENCODERS)}")
    if GRID_ENCODERS[found] != tower.config:
        wanted = next((name for name, grid in GRID_ENCODERS.items() if grid == tower.config), str(tower.config))
        raise UserError(f"{path} holds {found}, but the model's tower is {wanted}; pass --clip_model_name {found}")
    visual = {key.removeprefix("visual."): tensor for key, tensor in state.items() if key.startswith("visual.")}
    counters = {key: torch.tensor(0) for key in tower.state_dict() if key.endswith("num_batches_tracked")}
    load_weights(tower, counters | visual, ignore=("attnpool.", "proj"), source=path)


def detect_grid_encoder(state):
    """Name of the grid encoder whose shapes a state dict holds, under any prefix; None when there is none."""
    found = _detect_vit(state) or _detect_resnet(state)
    return next((name for name, grid in GRID_ENCODERS.items() if grid == found), None)


def _detect_vit(state):
    prefix = next((key.removesuffix("class_embedding") for key in state if key.endswith("class_embedding")), None)
    kernel, positions = state.get(f"{prefix}conv1.weight"), state.get(f"{prefix}positional_embedding")
    if prefix is None or kernel is None or positions is None:
        return None
    layers = {m[1] for key in state if (m := re.match(re.escape(prefix) + r"transformer\.resblocks\.(\d+)\.", key))}
    return ViTConfig(len(layers), kernel.shape[0], kernel.shape[-1], round((len(positions) - 1) ** 0.5))


def _detect_resnet(state):
    matches = [m for m in (re.fullmatch(r"(.*\.)?layer(\d+)\.(\d+)\.conv1\.weight", key) for key in state) if m]
    if not matches:
        return None
    prefix = matches[0][1] or ""
    stem = state.get(prefix + "conv3.weight")
    stages = [int(m[2]) for m in matches if (m[1] or "") == prefix]
    if stem is None:
        return None
    return GridConfig(tuple(stages.count(stage) for stage in sorted(set(stages))), stem.shape[0])


def detect_layers(state):
    """How many layers of each kind a state dict has, as the arguments of `VLEncoder`, under any prefix."""
    kinds = {"layer": "num_layers", "x_layers": "cross_layers", "r_layers": "visual_layers"}
    numbers = {kind: set() for kind in kinds}
    for key in state:
        if match := re.search(r"(?:^|\.)encoder\.(layer|x_layers|r_layers)\.(\d+)\.", key):
            numbers[match[1]].add(match[2])
    return {kinds[kind]: len(found) for kind, found in numbers.items()}


def detect_positions(state):
    """How many rows and columns of cells a state dict has positions for, under any prefix; 0 without positions."""
    tables = (tensor for key, tensor in state.items() if key.endswith("visual_pos.x_position_embedding.weight"))
    return len(next(tables, ()))


def digest_warning(path):
    """One sentence when a file named as one of OpenAI's (RN50.pt ...) differs from the published one; else ""."""
    path = Path(path)
    published = OPENAI_SHA256.get(path.stem) if path.suffix == ".pt" else None
    if published is None:
        return ""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest == published:
        return ""
    return f"{path} is not OpenAI's {path.name}: sha256 {digest[:16]}..., published {published[:16]}..."


def state_for_exchange(model):
    """The state dict as others expect it: contiguous, on the CPU, and with the tied decoder written out."""
    state = {key: tensor.detach().cpu().contiguous() for key, tensor in model.state_dict().items()}
    if "cls.predictions.bias" in state:
        state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    return state
