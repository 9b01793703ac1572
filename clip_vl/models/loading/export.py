"""Writes a trained dual encoder of CLIP's towers for open_clip or transformers, with a model card."""

import shutil
from pathlib import Path

import torch

from clip_vl.engine.checkpoint import write_plain
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_file, atomic_json, atomic_write, temporary_name
from clip_vl.engine.readers.text import written
from clip_vl.models.dual.build import open_dual_encoder
from clip_vl.models.dual.settings import dual_settings, read_dual_settings, recall_dual, refuse_without
from clip_vl.models.dual.spec import DualSpec, dual_spec, flags_of
from clip_vl.models.loading.card import card
from clip_vl.models.loading.clip_exchange import to_openclip, to_transformers
from clip_vl.models.loading.processor import image_processor, transformers_tokenizer
from clip_vl.models.loading.settings import as_metadata, as_record
from clip_vl.models.towers.pixels import Pixels


def write_clip(source, target, split="", scores=()):
    """An epoch_N.pt -> open_clip's state dict (.pt, the card beside it) or a transformers folder.

    split, scores: for the model card
    """
    source, target = Path(source), Path(target)
    found = read_dual_settings(source)
    refuse_without(found)
    values = flags_of(DualSpec(load=str(source))) | {"image_crop": None}
    values |= recall_dual(found, values, frozenset())
    model = open_dual_encoder(dual_spec(values), torch.device("cpu"))
    settings = dual_settings(values | found.values.get("trained_with", found.values), model)
    text = card(source, target, settings, model, split, scores)
    state = {name: tensor.detach().contiguous().clone() for name, tensor in to_openclip(model.state_dict()).items()}
    if target.suffix == ".pt":
        atomic_write(target.with_suffix(".md"), written(text))
        with atomic_file(target) as file:
            write_plain(file, state, as_record(settings))
        return
    activations = {getattr(tower, "activation", None) for tower in (model.image_tower, model.text_tower)}
    heads = [_blocks(tower)[0].attn.heads for tower in (model.image_tower, model.text_tower) if _blocks(tower)]
    if len(activations) != 1 or len(heads) != 2:
        raise UserError(f"transformers' CLIP has two transformers with one activation; {source} has not")
    tokenizer = transformers_tokenizer(model.tokenizer)
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    state, config = to_transformers(state, heads, *activations, model.image_tower.resolution, ids)
    processor = image_processor(Pixels(**settings["pixels"]))
    _write_folder(target, state, config, processor, tokenizer, settings, text)


def _blocks(tower):
    return tower.transformer["resblocks"] if hasattr(tower, "transformer") else []


def _write_folder(target, state, config, processor, tokenizer, settings, text):
    """All files, or none."""
    from safetensors.torch import save_file

    temporary = temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        tokenizer.save_pretrained(temporary)
        atomic_json(temporary / "config.json", config)
        atomic_json(temporary / "preprocessor_config.json", processor)
        atomic_write(temporary / "README.md", written(text))
        save_file(state, temporary / "model.safetensors", metadata=as_metadata(settings))
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
