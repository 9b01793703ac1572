"""Weights that the fused encoder starts from: CLIP's image tower and BERT; and what the shapes of a checkpoint say."""

import hashlib
import re
from pathlib import Path

import torch

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.grid import GRID_ENCODERS, GridConfig
from clip_vl.models.clip.vit import ViTConfig
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.loading.weights import load_weights


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
    from clip_vl.models.clip.published import OPENAI_SHA256

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
