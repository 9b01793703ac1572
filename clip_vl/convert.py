"""Convert checkpoints: the published form, safetensors, transformers' BERT and LXMERT folders; and region features.

    python -m clip_vl.convert snap/pretrain/NAME/Epoch09_LXRT.pth model.safetensors     plain names, nothing to unpickle
    python -m clip_vl.convert model.safetensors Epoch09_LXRT.pth                        and back, to the published form
    python -m clip_vl.convert Epoch09_LXRT.pth bert/ --bert data/bert-base-uncased      its text half, for transformers
    python -m clip_vl.convert Epoch20_LXRT.pth lxmert/ --bert data/bert-base-uncased    a two-stream model of regions
    python -m clip_vl.convert lxmert/ Epoch20_LXRT.pth                                  and back, from such a folder
    python -m clip_vl.convert train2014_obj36.tsv data/features/obj36.lmdb              LXMERT's or VL-T5's regions
    python -m clip_vl.convert snap/align/NAME/epoch_32.pt open_clip.pt                  a dual encoder for open_clip
    python -m clip_vl.convert snap/align/NAME/epoch_32.pt clip/                         or transformers, with a card
    python -m clip_vl.convert clip/ ours.pt                                             and back, also from .pt

The ending of the target says which; a folder becomes a BERT one, or for two streams with boxes an LXMERT one. The
published form puts "module." before the names of a pre-training checkpoint. Every form loads again: .pth and
.safetensors with --load, a BERT folder with --bert. transformers puts a tanh behind the pooler, which a single stream
has not: hidden states and masked words are the same, its pooled vector is not. LXMERT's is the same in all; a model of
regions that was trained with --no-pooler_tanh cannot be told from it.

Regions (.tsv, .h5, .lmdb) become a store of float16 features (.lmdb, .h5), for --features; a second file may be added
to it. That may be interrupted and run again. --instances official/instances_train2014.json labels boxes with COCO's
categories, for --taskObjPredict with regions whose detector left no objects.
"""

from dataclasses import asdict, dataclass

from clip_vl.flags.parser import flag, parse


@dataclass
class ConvertFlags:
    """Conversion"""

    source: str = flag("", "A .pth or .safetensors file, a transformers folder, or regions.", positional=True)
    target: str = flag(
        "", "A .pth or .safetensors file or a folder, not there yet; for regions a store.", positional=True
    )
    bert: str = flag("data/bert-base-uncased", "For a folder: where config.json and vocab.txt come from.")
    instances: str | None = flag(
        None, "For regions: COCO instances files, separated by commas, whose categories label the boxes they overlap."
    )


FLAGS = parse(ConvertFlags, __doc__) if __name__ == "__main__" else None

import re
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tqdm import tqdm

from clip_vl.datasets.features.regions import convert_regions
from clip_vl.datasets.official.coco import BoxLabels
from clip_vl.engine.checkpoint import write_plain
from clip_vl.engine.dist import run_program
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_file, atomic_json, temporary_name
from clip_vl.engine.readers.json_files import read_object
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.pretrained import detect_layers
from clip_vl.models.loading.clip_exchange import from_openclip, from_transformers
from clip_vl.models.loading.export import write_clip
from clip_vl.models.loading.processor import pixels_of_processor
from clip_vl.models.loading.settings import as_metadata, as_record, assumed, read_settings
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.loading.torchscript import is_archive

CASED = "tokenizer_config.json"  # says whether the words are cased
STORES = (".lmdb", ".h5", ".hdf5")
BOX_WEIGHT = "encoder.visn_fc.box_fc.weight"
TOWER = "encoder.visual_model."  # CLIP-ViL's own files hold unused weights for boxes beside it
FINE_TUNED = "lxrt_encoder.model."
TO_LXMERT = {"lxrt_encoder.model.bert.": "lxmert.", "bert.": "lxmert.", "logit_fc.": "answer_head.logit_fc."}
FROM_LXMERT = {"lxmert.": "bert."}
FROM_LXMERT_TUNED = {"lxmert.": "lxrt_encoder.model.bert.", "answer_head.logit_fc.": "logit_fc."}
PRETRAINED = ("bert.", "cls.", "answer_head.", "obj_predict_head.")  # how the names of a pre-training checkpoint begin
TEXT_PARTS = re.compile(
    r"(lxrt_encoder\.model\.)?((bert\.(embeddings|pooler|encoder\.layer)\.|cls\.(predictions|seq_relationship)\.).*)"
)


def write_published(state, target, settings):
    """torch.save under the published names."""
    prefix = "module." if all(name.startswith(PRETRAINED) for name in state) else ""
    with atomic_file(target) as file:
        write_plain(file, {f"{prefix}{name}": tensor for name, tensor in state.items()}, as_record(settings))


def write_safetensors(state, target, settings):
    """Every tensor in memory of its own: the format knows no ties."""
    temporary = temporary_name(target)
    try:
        state = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        save_file(state, temporary, as_metadata(settings))
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_folder(state, target, bert, architecture, values, settings):
    """config.json, vocab.txt and model.safetensors, whole or not at all.

    bert:   folder of the BERT that the model was built from; its sizes must be those of the checkpoint
    values: what config.json says beside that BERT's own;  settings: those of the checkpoint
    """
    words = state[next(name for name in state if name.endswith("word_embeddings.weight"))]
    config = BertConfig.from_folder(bert, hint="--bert points to the folder that the model was built from.")
    if (config.vocab_size, config.hidden_size) != tuple(words.shape):
        raise UserError(
            f"{bert} is a BERT of {config.vocab_size} words and width {config.hidden_size}, the checkpoint has "
            f"{words.shape[0]} and {words.shape[1]}; point --bert to the folder that the model was built from"
        )
    temporary = temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        values = (read_object(Path(bert) / "config.json") or {}) | values
        atomic_json(temporary / "config.json", values | {"architectures": [architecture]})
        shutil.copyfile(Path(bert) / "vocab.txt", temporary / "vocab.txt")
        if (Path(bert) / CASED).is_file():
            shutil.copyfile(Path(bert) / CASED, temporary / CASED)
        write_safetensors(state, temporary / "model.safetensors", settings)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_bert_folder(state, target, bert, settings):
    """The text half of `state` as transformers' BertForPreTraining."""
    text = {match[2]: tensor for name, tensor in state.items() if (match := TEXT_PARTS.fullmatch(name))}
    if "bert.embeddings.word_embeddings.weight" not in text:
        raise UserError("the checkpoint holds no BERT embeddings, so there is no text half to convert")
    layers = detect_layers(state)["num_layers"]
    write_folder(text, target, bert, "BertForPreTraining", {"num_hidden_layers": layers}, settings)


def write_lxmert_folder(state, target, bert, settings):
    """A two-stream model of regions as transformers' LxmertForPreTraining, or fine-tuned LxmertForQuestionAnswering."""
    if not any(BOX_WEIGHT in name for name in state) or any(TOWER in name for name in state):
        raise UserError(
            "transformers knows two streams over a detector's regions alone, and this checkpoint's are over a grid or "
            "without boxes; convert it to .safetensors"
        )
    tuned = any(name.startswith(FINE_TUNED) for name in state)
    state = {_rename(name, TO_LXMERT): tensor for name, tensor in state.items()}
    write_folder(
        state,
        target,
        bert,
        "LxmertForQuestionAnswering" if tuned else "LxmertForPreTraining",
        {"model_type": "lxmert"} | _lxmert_sizes(state),
        settings,
    )


def _lxmert_sizes(state):
    """What transformers' LXMERT config says of the layers and heads, from the shapes."""
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


def read_source(path):
    """The state dict of a file, or of a transformers folder under our names."""
    path = Path(path)
    if not path.is_dir():
        return read_state_dict(path)
    file = next((path / name for name in ("model.safetensors", "pytorch_model.bin") if (path / name).is_file()), None)
    if file is None:
        raise UserError(f"{path} holds neither model.safetensors nor pytorch_model.bin; is it a transformers folder?")
    state = read_state_dict(file)
    if any(name.startswith("vision_model.") for name in state):
        return from_transformers(state)
    tuned = not any(name.startswith("cls.") for name in state) and any("answer_head." in name for name in state)
    return {_rename(name, FROM_LXMERT_TUNED if tuned else FROM_LXMERT): tensor for name, tensor in state.items()}


def _rename(name, prefixes):
    old = next((old for old in prefixes if name.startswith(old)), "")
    return prefixes.get(old, "") + name.removeprefix(old)


def settings_of(source):
    """The settings of a file, or of a transformers folder: those that we wrote, or what its configurations say."""
    if not source.is_dir():
        values = read_settings(source).values
        return values | {"quick_gelu": [1, 1]} if is_archive(source) else values
    if (source / "model.safetensors").is_file() and (found := read_settings(source / "model.safetensors")).found:
        return found.values
    config, processor = (read_object(source / name) or {} for name in ("config.json", "preprocessor_config.json"))
    if config.get("model_type") != "clip":
        return {}
    parts = [config.get(f"{part}_config") for part in ("vision", "text")]
    quick = [int(not isinstance(p, dict) or p.get("hidden_act", "quick_gelu") == "quick_gelu") for p in parts]
    return {"quick_gelu": quick} | ({"pixels": asdict(pixels_of_processor(processor))} if processor else {})


def main(args):
    if not (args.source and args.target):
        raise UserError("name a source and a target, such as Epoch09_LXRT.pth model.safetensors")
    target = Path(args.target)
    if target.suffix in STORES:
        with tqdm(unit="image", disable=not sys.stderr.isatty()) as bar:
            relabel = [BoxLabels(args.instances.split(","))] if args.instances else []
            count = convert_regions(args.source, target, bar.update, *relabel)
        print(f"{target}: the regions of {count:,} images added")
        for labels in relabel:
            print(f"boxes of {labels.relabelled:,} images labelled; {labels.kept:,} images are not listed and stay")
        return
    if args.instances:
        raise UserError("--instances labels the boxes of regions, whose target ends in .lmdb or .h5")
    if target.exists():
        raise UserError(f"{target} exists already; remove it or choose another target")
    state, settings = read_source(args.source), settings_of(Path(args.source))
    target.parent.mkdir(parents=True, exist_ok=True)
    if any(name.startswith("image_tower.") for name in state):
        if target.suffix not in (".pt", ""):
            raise UserError(
                f"a dual encoder becomes a .pt for open_clip or a folder for transformers, not {target.suffix}"
            )
        write_clip(args.source, target)
    elif any(name.startswith("visual.") for name in state):
        if target.suffix != ".pt":
            raise UserError(f"CLIP's weights become a .pt for --load, not {target}")
        if "quick_gelu" not in settings:
            print(assumed(args.source, {"activation": "gelu"}))
        quick = settings.get("quick_gelu", [0, 0])
        with atomic_file(target) as file:
            write_plain(file, {"state_dict": from_openclip(state, quick)}, as_record(settings))
    elif target.suffix == ".pth":
        write_published(state, target, settings)
    elif target.suffix == ".safetensors":
        write_safetensors(state, target, settings)
    elif target.suffix:
        raise UserError(f"{target} ends in {target.suffix}; .pth, .safetensors, .lmdb, .h5 or a folder can be written")
    elif detect_layers(state)["cross_layers"]:
        write_lxmert_folder(state, target, args.bert, settings)
    else:
        write_bert_folder(state, target, args.bert, settings)
    print(f"{target}: {len(state)} tensors read")


if __name__ == "__main__":
    run_program(main, FLAGS)
