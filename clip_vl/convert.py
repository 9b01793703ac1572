"""Convert checkpoints of the fused encoder: the published form, safetensors, and a transformers BERT folder.

    python -m clip_vl.convert snap/pretrain/NAME/Epoch09_LXRT.pth model.safetensors     plain names, nothing to unpickle
    python -m clip_vl.convert model.safetensors Epoch09_LXRT.pth                        and back, to the published form
    python -m clip_vl.convert Epoch09_LXRT.pth bert/ --bert data/bert-base-uncased      its text half, for transformers

The ending of the target says which. The published form puts "module." before the names of a pre-training checkpoint.
Every form loads again: .pth and .safetensors with --load, a BERT folder with --bert. transformers puts a tanh behind
the pooler, which a single stream has not: hidden states and masked words are the same, its pooled vector is not.
"""

from dataclasses import dataclass

from clip_vl.engine.flags import flag, parse


@dataclass
class ConvertFlags:
    """Conversion"""

    source: str = flag("", "A .pth or .safetensors file.", positional=True)
    target: str = flag("", "A .pth or .safetensors file, or a folder; it must not exist.", positional=True)
    bert: str = flag("data/bert-base-uncased", "For a folder: where config.json and vocab.txt come from.")


FLAGS = parse(ConvertFlags, __doc__) if __name__ == "__main__" else None

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from clip_vl.engine.dist import run_program
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_file, atomic_json, temporary_name
from clip_vl.models.bert import BertConfig
from clip_vl.models.weights import detect_layers, read_state_dict

PRETRAINED = ("bert.", "cls.", "answer_head.")  # how the names of a pre-training checkpoint begin
TEXT_PARTS = re.compile(
    r"(lxrt_encoder\.model\.)?((bert\.(embeddings|pooler|encoder\.layer)\.|cls\.(predictions|seq_relationship)\.).*)"
)


def write_published(state, target):
    """torch.save under the published names."""
    prefix = "module." if all(name.startswith(PRETRAINED) for name in state) else ""
    with atomic_file(target) as file:
        torch.save({f"{prefix}{name}": tensor for name, tensor in state.items()}, file)


def write_safetensors(state, target):
    """Every tensor in memory of its own: the format knows no ties."""
    temporary = temporary_name(target)
    try:
        save_file(
            {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}, temporary
        )
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bert_folder(state, target, bert):
    """config.json, vocab.txt and model.safetensors with the text half of `state`, as `BertForPreTraining` names it.

    bert: folder of the BERT that the model was built from; its sizes must be those of the checkpoint
    """
    layers = detect_layers(state)
    if layers["cross_layers"]:
        raise UserError(
            "a two-stream encoder is no BERT: its text goes through cross layers; convert it to .safetensors"
        )
    text = {match[2]: tensor for name, tensor in state.items() if (match := TEXT_PARTS.fullmatch(name))}
    words = text.get("bert.embeddings.word_embeddings.weight")
    if words is None:
        raise UserError("the checkpoint holds no BERT embeddings, so there is no text half to convert")
    config = BertConfig.from_folder(bert, hint="--bert points to the folder that the model was built from.")
    if (config.vocab_size, config.hidden_size) != tuple(words.shape):
        raise UserError(
            f"{bert} is a BERT of {config.vocab_size} words and width {config.hidden_size}, the checkpoint has "
            f"{words.shape[0]} and {words.shape[1]}; point --bert to the folder that the model was built from"
        )
    temporary = temporary_name(target)
    try:
        temporary.mkdir(parents=True)
        values = json.loads((Path(bert) / "config.json").read_text()) | {"num_hidden_layers": layers["num_layers"]}
        atomic_json(temporary / "config.json", values | {"architectures": ["BertForPreTraining"]})
        shutil.copyfile(Path(bert) / "vocab.txt", temporary / "vocab.txt")
        write_safetensors(text, temporary / "model.safetensors")
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def main(args):
    if not (args.source and args.target):
        raise UserError("name a source and a target, such as Epoch09_LXRT.pth model.safetensors")
    target = Path(args.target)
    if target.exists():
        raise UserError(f"{target} exists already; remove it or choose another target")
    state = read_state_dict(args.source)
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.suffix == ".pth":
        write_published(state, target)
    elif target.suffix == ".safetensors":
        write_safetensors(state, target)
    elif target.suffix:
        raise UserError(f"{target} ends in {target.suffix}; a target ends in .pth or .safetensors, or is a folder")
    else:
        write_bert_folder(state, target, args.bert)
    print(f"{target}: {len(state)} tensors read")


if __name__ == "__main__":
    run_program(main, FLAGS)
