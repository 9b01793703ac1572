"""Checkpoints of the fused encoder in other forms: published .pth, safetensors, transformers' BERT and LXMERT."""

import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from clip_vl.engine.checkpoint import write_plain
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_file, atomic_json, temporary_name
from clip_vl.engine.readers.json_files import read_object
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.pretrained import detect_layers
from clip_vl.models.loading.settings import as_metadata, as_record

TOKENIZER_CONFIG = "tokenizer_config.json"  # says whether words are lower-cased
BOX_WEIGHT = "encoder.visn_fc.box_fc.weight"
TOWER = "encoder.visual_model."  # CLIP-ViL's own files hold unused weights for boxes beside it
FINE_TUNED = "lxrt_encoder.model."
TO_LXMERT = {"lxrt_encoder.model.bert.": "lxmert.", "bert.": "lxmert.", "logit_fc.": "answer_head.logit_fc."}
FROM_LXMERT = {"lxmert.": "bert."}
FROM_FINE_TUNED_LXMERT = {"lxmert.": "lxrt_encoder.model.bert.", "answer_head.logit_fc.": "logit_fc."}
PRETRAINING_PARTS = ("bert.", "cls.", "answer_head.", "obj_predict_head.")  # first parts of the names of a checkpoint
TEXT_PARTS = re.compile(
    r"(lxrt_encoder\.model\.)?((bert\.(embeddings|pooler|encoder\.layer)\.|cls\.(predictions|seq_relationship)\.).*)"
)


def write_fused(state, target, bert, settings):
    """Write the state dict of a fused encoder in the form that the suffix of `target` names; a folder without one.

    bert: folder of the BERT that the model was built from, for a folder;  settings: those of the checkpoint
    """
    if target.suffix == ".pth":
        write_published(state, target, settings)
    elif target.suffix == ".safetensors":
        write_safetensors(state, target, settings)
    elif target.suffix:
        raise UserError(f"{target} ends in {target.suffix}; .pth, .safetensors, .lmdb, .h5 or a folder can be written")
    elif detect_layers(state)["cross_layers"]:
        write_lxmert_folder(state, target, bert, settings)
    else:
        write_bert_folder(state, target, bert, settings)


def write_published(state, target, settings):
    """Write with torch.save under the published names, which start with "module." in a pre-training checkpoint."""
    prefix = "module." if all(name.startswith(PRETRAINING_PARTS) for name in state) else ""
    with atomic_file(target) as file:
        write_plain(file, {f"{prefix}{name}": tensor for name, tensor in state.items()}, as_record(settings))


def write_safetensors(state, target, settings):
    """Write a safetensors file, each tensor with its own copy: the format has no tied tensors."""
    temporary = temporary_name(target)
    try:
        state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        save_file(state, temporary, as_metadata(settings))
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(state, target, bert, architecture, values, settings):
    """Write config.json, vocab.txt and model.safetensors, all of them or none.

    bert:   folder of the BERT that the model was built from; its sizes must be those of the checkpoint
    values: entries of config.json that replace those of that BERT;  settings: those of the checkpoint
    """
    embeddings = state[next(name for name in state if name.endswith("word_embeddings.weight"))]
    config = BertConfig.from_folder(bert, hint="--bert points to the folder that the model was built from.")
    if (config.vocab_size, config.hidden_size) != tuple(embeddings.shape):
        raise UserError(
            f"{bert} is a BERT of {config.vocab_size} words and width {config.hidden_size}, the checkpoint has "
            f"{embeddings.shape[0]} and {embeddings.shape[1]}; point --bert to the folder that the model was built from"
        )
    temporary = temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        values = (read_object(Path(bert) / "config.json") or {}) | values
        atomic_json(temporary / "config.json", values | {"architectures": [architecture]})
        shutil.copyfile(Path(bert) / "vocab.txt", temporary / "vocab.txt")
        if (Path(bert) / TOKENIZER_CONFIG).is_file():
            shutil.copyfile(Path(bert) / TOKENIZER_CONFIG, temporary / TOKENIZER_CONFIG)
        write_safetensors(state, temporary / "model.safetensors", settings)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bert_folder(state, target, bert, settings):
    """Write the text encoder of `state` as transformers' BertForPreTraining."""
    text = {match[2]: tensor for name, tensor in state.items() if (match := TEXT_PARTS.fullmatch(name))}
    if "bert.embeddings.word_embeddings.weight" not in text:
        raise UserError("the checkpoint holds no BERT embeddings, so there is no text encoder to convert")
    layers = detect_layers(state)["num_layers"]
    write_folder(text, target, bert, "BertForPreTraining", {"num_hidden_layers": layers}, settings)


def write_lxmert_folder(state, target, bert, settings):
    """Write a two-stream model of regions as transformers' LxmertForPreTraining or LxmertForQuestionAnswering."""
    if not any(BOX_WEIGHT in name for name in state) or any(TOWER in name for name in state):
        raise UserError(
            "transformers' LXMERT takes the regions of a detector with their boxes, and this checkpoint takes a grid, "
            "or regions without boxes; convert it to .safetensors"
        )
    if settings.get("pooler_tanh") is False:
        raise UserError("transformers' LXMERT applies a tanh after the pooler, and this checkpoint was trained with "
                        "--no-pooler_tanh; convert it to .safetensors")  # fmt: skip
    tuned = any(name.startswith(FINE_TUNED) for name in state)
    state = {rename_prefix(name, TO_LXMERT): tensor for name, tensor in state.items()}
    write_folder(
        state,
        target,
        bert,
        "LxmertForQuestionAnswering" if tuned else "LxmertForPreTraining",
        {"model_type": "lxmert"} | _lxmert_sizes(state),
        settings,
    )


def _lxmert_sizes(state):
    """Numbers of layers, classes and losses in transformers' LXMERT config, from the shapes of the weights."""
    layers = detect_layers(state)

    def rows(name):
        return len(state[name]) if name in state else 0

    head = "obj_predict_head.decoder_dict."
    regions = {name: rows(f"{head}{name}.weight") for name in ("obj", "attr", "feat")}
    answers = rows("answer_head.logit_fc.3.weight")
    return {
        "l_layers": layers["num_layers"],
        "x_layers": layers["cross_layers"],
        "r_layers": layers["visual_layers"],
        "visual_feat_dim": state["lxmert.encoder.visn_fc.visn_fc.weight"].shape[1],
        "num_qa_labels": answers or 1,
        "num_object_labels": regions["obj"] or 1,
        "num_attr_labels": regions["attr"] or 1,
        "task_qa": answers > 0,
        "task_obj_predict": any(regions.values()),
    } | {f"visual_{name}_loss": count > 0 for name, count in regions.items()}


def from_transformers_bert(state):
    """State dict of transformers' BERT or LXMERT, under the names of this repository."""
    is_fine_tuned = not any(name.startswith("cls.") for name in state) and any("answer_head." in n for n in state)
    return {rename_prefix(n, FROM_FINE_TUNED_LXMERT if is_fine_tuned else FROM_LXMERT): t for n, t in state.items()}


def rename_prefix(name, prefixes):
    """The name with the first of `prefixes`, {old: new}, that it starts with replaced."""
    old = next((old for old in prefixes if name.startswith(old)), "")
    return prefixes.get(old, "") + name.removeprefix(old)
