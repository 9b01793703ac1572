"""A dual encoder of CLIP's own towers as others keep it: open_clip's state dict, and transformers' CLIPModel."""

import re

import torch

from clip_vl.engine.errors import DataError, UserError

BPE_WORDS = 49408  # CLIP's byte pairs; the last two are the start and the end of a text
BLOCK = re.compile(r"(?P<tower>(?:visual\.)?)transformer\.resblocks\.(?P<layer>\d+)\.(?P<part>.+)")
PARTS = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2",
         "attn.out_proj": "self_attn.out_proj"}  # fmt: skip
WHOLE = {
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",  # (sic)
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "logit_scale": "logit_scale",
}
TRANSPOSED = ("text_projection", "visual.proj")  # matrices here, linear layers there


def to_openclip(state):
    """Our names (image_tower., text_tower., logit_scale) -> open_clip's. Raises UserError for what has no place."""
    own = ("image_tower.", "text_tower.", "logit_scale")
    state = {name: tensor for name, tensor in state.items() if name != "quick_gelu"}
    foreign = sorted({name.partition(".")[0] for name in state if not name.startswith(own)})
    if foreign:
        raise UserError(f"CLIP has no {', '.join(foreign)}: only towers without heads can be written for others")
    names = {n: n.replace("image_tower.", "visual.", 1).removeprefix("text_tower.") for n in state}
    if "text_tower.token_embedding.weight" not in state or not any(BLOCK.fullmatch(name) for name in names.values()):
        raise UserError("the text tower is not CLIP's own kind (--text_model_builder clip), so others cannot read it")
    return {names[name]: tensor for name, tensor in state.items()}


def from_openclip(state, quick_gelu=(0, 0)):
    """open_clip's or OpenAI's names -> ours, for --load. quick_gelu: whether the towers have OpenAI's GELU."""
    unused = ("input_resolution", "context_length", "vocab_size", "attn_mask")
    state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    ours = {
        name if name == "logit_scale" else f"image_tower.{name.removeprefix('visual.')}" if name.startswith("visual.")
        else f"text_tower.{name}": tensor for name, tensor in state.items() if name not in unused
    }  # fmt: skip
    return ours | {"quick_gelu": torch.tensor(quick_gelu, dtype=torch.uint8)}


def to_transformers(state, heads, activation, resolution, ids=None):
    """open_clip's state dict of two transformers -> (transformers' one, its config.json).

    heads: (of the image tower, of the text tower);  activation: "gelu" or "quick_gelu"
    ids:   {"bos", "eos", "pad": id} of the tokenizer, where it is not CLIP's
    """
    if "visual.class_embedding" not in state:
        raise UserError("transformers' CLIP has vision transformers alone: this image tower is none")
    words = len(state["token_embedding.weight"])
    if ids is None and words != BPE_WORDS:
        raise UserError(f"the text tower has {words:,} words and CLIP's byte pairs are {BPE_WORDS:,}: name its tokens")
    ids = ids or {"bos": words - 2, "eos": words - 1, "pad": words - 1}
    found = {}
    for name, tensor in state.items():
        found |= _to_transformers(name, tensor)
    embed_dim = state["text_projection"].shape[1]
    vision = _sizes(state, "visual.", heads[0], activation) | {
        "projection_dim": embed_dim, "image_size": resolution, "patch_size": state["visual.conv1.weight"].shape[-1],
        "model_type": "clip_vision_model"}  # fmt: skip
    text = _sizes(state, "", heads[1], activation) | {
        "projection_dim": embed_dim, "vocab_size": words, "max_position_embeddings": len(state["positional_embedding"]),
        **{f"{name}_token_id": number for name, number in ids.items()}, "model_type": "clip_text_model"}  # fmt: skip
    config = {"architectures": ["CLIPModel"], "model_type": "clip", "projection_dim": embed_dim,
              "vision_config": vision, "text_config": text}  # fmt: skip
    return found, config


def _to_transformers(name, tensor):
    if name in WHOLE:
        return {WHOLE[name]: tensor.T.contiguous() if name in TRANSPOSED else tensor}
    match = BLOCK.fullmatch(name)
    if match is None:
        raise UserError(f"transformers' CLIP has no place for {name}")
    stem = f"{'vision' if match['tower'] else 'text'}_model.encoder.layers.{match['layer']}."
    part, _, kind = match["part"].rpartition(".")
    if match["part"].startswith("attn.in_proj_"):
        kind = match["part"].rpartition("_")[2]
        return {f"{stem}self_attn.{n}_proj.{kind}": part for n, part in zip("qkv", tensor.chunk(3))}
    return {f"{stem}{PARTS[part]}.{kind}": tensor}


def _sizes(state, tower, heads, activation):
    layers = {int(match["layer"]) for name in state if (match := BLOCK.fullmatch(name)) and match["tower"] == tower}
    hidden, width = state[f"{tower}transformer.resblocks.0.mlp.c_fc.weight"].shape
    return {"hidden_size": width, "intermediate_size": hidden, "num_hidden_layers": len(layers),
            "num_attention_heads": heads, "hidden_act": activation, "layer_norm_eps": 1e-5}  # fmt: skip


def from_transformers(state):
    """transformers' state dict of a CLIPModel -> open_clip's. Raises DataError for a tensor that CLIP has not."""
    whole, parts = {theirs: ours for ours, theirs in WHOLE.items()}, {theirs: ours for ours, theirs in PARTS.items()}
    found, packed = {}, {}
    layer = re.compile(r"(text|vision)_model\.encoder\.layers\.(\d+)\.(.+)\.(weight|bias)")
    for name, tensor in state.items():
        if name.endswith(".position_ids"):
            continue
        if name in whole:
            found[whole[name]] = tensor.T.contiguous() if whole[name] in TRANSPOSED else tensor
            continue
        match = layer.fullmatch(name)
        if match is None or (match[3] not in parts and not re.fullmatch(r"self_attn\.[qkv]_proj", match[3])):
            raise DataError(f"{name} is no tensor of transformers' CLIPModel")
        stem = f"{'visual.' if match[1] == 'vision' else ''}transformer.resblocks.{match[2]}."
        if match[3] in parts:
            found[f"{stem}{parts[match[3]]}.{match[4]}"] = tensor
        else:
            packed.setdefault(f"{stem}attn.in_proj_{match[4]}", {})[match[3][len("self_attn.")]] = tensor
    for name, three in packed.items():
        if set(three) != set("qkv"):
            raise DataError(f"{name} lacks one of query, key and value; is the file whole?")
        found[name] = torch.cat([three[part] for part in "qkv"])
    return found
