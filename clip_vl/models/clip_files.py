"""Writes a trained dual encoder of CLIP's towers for open_clip or transformers, with a card that says what it is."""

import shutil
from dataclasses import dataclass
from pathlib import Path

import torch

from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_file, atomic_json, atomic_write, temporary_name
from clip_vl.engine.json_files import read_object
from clip_vl.engine.report import score_groups
from clip_vl.engine.text import written
from clip_vl.models.clip_exchange import to_openclip, to_transformers
from clip_vl.models.dual_build import open_dual_encoder
from clip_vl.models.dual_flags import ImageTowerFlags, SharedTowerFlags, TextTowerFlags, check_dual_flags

TOLD = ("train_data", "dataset_size", "loss", "epochs", "batch_size", "lr", "image_model", "text_model")
SCORES = 24  # lines of the card


@dataclass
class _Towers(ImageTowerFlags, TextTowerFlags, SharedTowerFlags):
    seed: int = 0


def write_clip(source, target):
    """An epoch_N.pt with its args.json -> open_clip's state dict (.pt, the card beside it) or a transformers folder."""
    source, target = Path(source), Path(target)
    if not (source.parent / "args.json").is_file():
        raise UserError(f"{source.parent / 'args.json'} is not there; it says which towers {source.name} is of")
    args = _Towers(load=str(source))
    check_dual_flags(args)
    model = open_dual_encoder(args, torch.device("cpu"))
    state = {name: tensor.detach().contiguous().clone() for name, tensor in to_openclip(model.state_dict()).items()}
    record = read_object(source.parent / "args.json")
    if target.suffix == ".pt":
        atomic_write(target.with_suffix(".md"), written(card(source, record, "open_clip", model)))
        with atomic_file(target) as file:
            torch.save(state, file)
        return
    activations = {getattr(tower, "activation", None) for tower in (model.image_tower, model.text_tower)}
    heads = [_blocks(tower)[0].attn.heads for tower in (model.image_tower, model.text_tower) if _blocks(tower)]
    if len(activations) != 1 or len(heads) != 2:
        raise UserError(f"transformers' CLIP has two transformers with one activation; {source} has not")
    state, config = to_transformers(state, heads, *activations, model.image_tower.resolution)
    _write_folder(target, state, config, _preprocessor(model.image_tower), card(source, record, "transformers", model))


def _blocks(tower):
    return tower.transformer["resblocks"] if hasattr(tower, "transformer") else []


def _preprocessor(tower):
    side = tower.resolution
    return {"image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"shortest_edge": side},
            "resample": 3, "do_center_crop": True, "crop_size": {"height": side, "width": side}, "do_rescale": True,
            "do_convert_rgb": True, "rescale_factor": 1 / 255, "do_normalize": True, "image_mean": list(tower.mean),
            "image_std": list(tower.std)}  # fmt: skip


def _write_folder(target, state, config, preprocessor, text):
    """All files, or none."""
    from safetensors.torch import save_file

    temporary = temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        atomic_json(temporary / "config.json", config)
        atomic_json(temporary / "preprocessor_config.json", preprocessor)
        atomic_write(temporary / "README.md", written(text))
        save_file(state, temporary / "model.safetensors", metadata={"format": "pt"})
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def card(source, record, library, model):
    """Markdown: what the model is, what it was trained on, what it scored, and how it is opened."""
    path = source.parent / "result.json"
    result = read_object(path) or {}
    flags = [(name, record["args"].get(name)) for name in TOLD if record["args"].get(name) is not None]
    rows = [row for group in score_groups(result) for row in group["rows"]][:SCORES]
    scores = [f"| {row['label']} | {row['value']:.2f} | {_interval(row)} | {row['n'] or ''} |" for row in rows]
    size = sum(parameter.numel() for parameter in model.parameters())
    tower = model.image_tower
    lines = [
        "---", f"library_name: {library}", "pipeline_tag: zero-shot-image-classification", "---", "",
        f"# {_plain(record.get('name', source.stem))}", "",
        f"A CLIP model of {size / 1e6:.1f} million parameters, trained with clip_vl. Images: {tower.resolution} x "
        f"{tower.resolution} pixels, mean {list(tower.mean)}, std {list(tower.std)}; activation {tower.activation}. "
        "Texts: the byte pairs of openai/clip-vit-base-patch32.", "",
        "| trained with | |", "|---|---|", *(f"| {name} | {_plain(value)} |" for name, value in flags), "",
    ]  # fmt: skip
    if scores:
        split = f"on {_plain(result['split'])}" if result.get("split") else ""
        lines += [
            f"Scores {split}".strip() + ":",
            "",
            "| | score | 95 % interval | n |",
            "|---|---|---|---|",
            *scores,
            "",
        ]
    return "\n".join(lines)


def _interval(row):
    return "" if row["low"] is None else f"{row['low']:.2f} to {row['high']:.2f}"


def _plain(value):
    return " ".join(str(value).split()).replace("|", "&#124;").replace("<", "&lt;")
