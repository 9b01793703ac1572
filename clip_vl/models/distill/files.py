"""Published weight files of the distilled models -> state dicts under our parameter names."""

import re
from collections import Counter
from pathlib import Path

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.loading.weights import mismatch_table

IMAGE = "modality_encoders.IMAGE."
DATA2VEC2 = {
    "extra_tokens": "cls_token",
    "local_encoder.proj": "patch_embed.proj",
    "fixed_positional_encoder.positions": "pos_embed",
    "context_encoder.norm": "norm_pre",
}
URLS = {
    "data2vec2": "https://dl.fbaipublicfiles.com/fairseq/data2vec2/base_imagenet.pt",
    "beitv2": "https://github.com/addf400/files/releases/download/BEiT-v2/beitv2_base_patch16_224_pt1k.pth",
    "dino": "https://dl.fbaipublicfiles.com/dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
}


def read_tensors(path, hint=""):
    """{name: fp32 tensor} of a .safetensors or torch file; objects of other libraries in it are skipped, never run."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} is missing. {hint}".rstrip())
    if path.suffix == ".safetensors":
        from clip_vl.models.loading.state_dicts import read_state_dict as read
    else:
        from clip_vl.models.loading.stubbed import read_tensors_only as read
    state = read(path)
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}


def read_data2vec2(path, blocks):
    """Data2Vec2's base_imagenet.pt -> (state of an `ImageEncoder` of the first `blocks`, {dropped group: keys}).

    Both layouts: all blocks at the top level, or the first ones in the modality encoder and the others behind them.
    """
    state = read_tensors(path, f"Fetch {URLS['data2vec2']}")
    dropped = Counter()
    for name in [n for n in state if n.startswith((f"{IMAGE}decoder.", "_ema"))]:
        dropped[name.removeprefix(IMAGE).partition(".")[0]] += 1
        del state[name]
    inner = re.compile(re.escape(IMAGE) + r"context_encoder\.blocks\.(\d+)\.")
    first = 1 + max((int(match[1]) for name in state if (match := inner.match(name))), default=-1)
    found = {}
    for name, tensor in state.items():
        ours = _data2vec2_name(name, first)
        block = re.match(r"blocks\.(\d+)\.", ours or "")
        if ours is None:
            dropped[name.removeprefix(IMAGE).partition(".")[0]] += 1
        elif block and int(block[1]) >= blocks:
            dropped["later blocks"] += 1
        else:
            found[ours] = tensor
    return found, dict(dropped)


def _data2vec2_name(name, first):
    """Our name of a fairseq parameter, or None; top-level blocks stand behind the `first` ones of the encoder."""
    if name.startswith(IMAGE):
        name = name.removeprefix(IMAGE)
        if name.startswith("context_encoder.blocks."):
            return name.removeprefix("context_encoder.")
        known = (ours + name.removeprefix(theirs) for theirs, ours in DATA2VEC2.items() if name.startswith(theirs))
        return next(known, None)
    match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
    return f"blocks.{int(match[1]) + first}.{match[2]}" if match else None


def read_beitv2(path, final_norm=False):
    """beitv2_base_patch16_224_pt1k.pth -> (state of a `Beit`, {dropped group: keys})."""
    state, found, dropped = read_tensors(path, f"Fetch {URLS['beitv2']}"), {}, Counter()
    unused = {"cls_pt_layers", "lm_head", "mask_token", "head", "fc_norm"} | (set() if final_norm else {"norm"})
    for name, tensor in state.items():
        if (group := name.partition(".")[0]) in unused:
            dropped[group] += 1
        else:
            found[re.sub(r"\.gamma_([12])$", r".ls\1.gamma", name)] = tensor
    return found, dict(dropped)


def read_bert(path, layers):
    """A BERT file -> (state of a `TextEncoder` of the first `layers`, with `pooler.dense` where the file has it)."""
    state, found, dropped = read_tensors(path), {}, Counter()
    for name, tensor in state.items():
        name = name.removeprefix("model.").removeprefix("bert.")
        name = name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
        layer = re.match(r"encoder\.layer\.(\d+)\.", name)
        if not name.startswith(("embeddings.", "encoder.", "pooler.")) or name == "embeddings.position_ids":
            dropped[name.partition(".")[0]] += 1
        elif layer and int(layer[1]) >= layers:
            dropped["later layers"] += 1
        else:
            found[name] = tensor
    return found, dict(dropped)


def read_student(path):
    """A checkpoint of our own or of the published program -> state of a `Student`, without teacher, bank and scale."""
    state = read_tensors(path)
    for prefix in ("module.model.", "model."):
        inner = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if inner:
            return inner
    return {name: tensor for name, tensor in state.items() if not name.startswith(("teacher.", "kd.", "kd_loss"))}


def fit_weights(module, state, source):
    """Load `state` into the module; every name and every shape must match."""
    table = mismatch_table(state, module.state_dict(), list(module.state_dict()))
    if table:
        raise DataError(f"{source} does not fit the model:\n{table}")
    module.load_state_dict(state)
    return module
