"""Text encoders from a folder of the Hugging Face hub, and students that are read from a checkpoint of any size."""

import dataclasses
import re
from pathlib import Path

from clip_vl.engine.errors import UserError
from clip_vl.models.distill.files import fit_weights, read_bert, read_data2vec2, read_student
from clip_vl.models.distill.image_encoder import ImageEncoder, ImageEncoderSpec, init_image_encoder
from clip_vl.models.distill.student import Student
from clip_vl.models.distill.text_encoder import TextEncoder, random_text_encoder
from clip_vl.models.fused.bert import BertConfig

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def text_config(folder, layers=None, dropout=None):
    """The `BertConfig` of a folder, cut to its first `layers`; dropout replaces both of its probabilities."""
    config = BertConfig.from_folder(folder, hint="--bert names that folder.")
    if layers and layers > config.num_hidden_layers:
        raise UserError(f"--layers {layers}: the model in {folder} has {config.num_hidden_layers} layers")
    rates = {} if dropout is None else {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    return dataclasses.replace(config, num_hidden_layers=layers or config.num_hidden_layers, **rates)


def bert_file(folder):
    """The weights in a BERT folder."""
    found = next((Path(folder) / name for name in WEIGHTS if (Path(folder) / name).is_file()), None)
    if found is None:
        raise UserError(f"{folder} has no weights: put {' or '.join(WEIGHTS)} there, or pass --random_init")
    return found


def build_text_encoder(folder, layers=None, dropout=None, random_init=False):
    """(the first layers of a folder's BERT, the state of its pooler {weight, bias} or None)."""
    encoder = TextEncoder(text_config(folder, layers, dropout))
    if random_init:
        return random_text_encoder(encoder, std=min(0.1, encoder.config.hidden_size**-0.5)), None
    path = bert_file(folder)
    state, _ = read_bert(path, encoder.config.num_hidden_layers)
    pooler = {name.removeprefix("pooler."): state.pop(name) for name in list(state) if name.startswith("pooler.")}
    return fit_weights(encoder, state, path), pooler or None


def load_text_encoder(checkpoint, folder, dropout=None):
    """The text encoder of a student's checkpoint; the folder's configuration has the number of its heads."""
    state = part_of(read_student(checkpoint), "text_model.", checkpoint)
    layers = 1 + max(int(match[1]) for name in state if (match := re.match(r"encoder\.layer\.(\d+)\.", name)))
    return fit_weights(TextEncoder(text_config(folder, layers, dropout)), state, checkpoint)


def part_of(state, prefix, source):
    """The tensors whose name begins with a prefix, without it."""
    found = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    if not found:
        raise UserError(f"{source} has no weights of {prefix.rstrip('.')}")
    return found


def build_student(spec, bert, data2vec2=None, load=None, random_init=False):
    """A `Student` with the weights of both encoders, or of a student's checkpoint.

    bert: folder of the text model;  data2vec2: file of the image model;  load: checkpoint of a student
    random_init: encoders for which no file is given start at random
    """
    if load:
        state = read_student(load)
        head = state.get("head.weight")
        if not spec.targets and head is not None:  # nothing is distilled: the head keeps its width
            spec = dataclasses.replace(spec, targets=len(head))
        return fit_weights(Student(spec), state, load)
    student = Student(spec)
    random_text_encoder(student.text_model, std=min(0.1, spec.text.hidden_size**-0.5))
    init_image_encoder(student.image_model)
    if data2vec2:
        fit_weights(student.image_model, read_data2vec2(data2vec2, spec.image.blocks)[0], data2vec2)
    elif not random_init:
        raise UserError("--data2vec2_ckpt names the file of the image encoder's weights; --random_init starts without")
    if not random_init:
        encoder, _ = build_text_encoder(bert, spec.text.num_hidden_layers)
        student.text_model.load_state_dict(encoder.state_dict())
    return student


def load_image_encoder(load, data2vec2, heads, blocks=6, resolution=224):
    """The `ImageEncoder` of a student's checkpoint, whose file says all sizes but the heads, or of Data2Vec2's file."""
    if not load:
        spec = ImageEncoderSpec(blocks=blocks, heads=heads, resolution=resolution)
        return fit_weights(ImageEncoder(spec), read_data2vec2(data2vec2, blocks)[0], data2vec2)
    state = part_of(read_student(load), "image_model.", load)
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    found = 1 + max(int(match[1]) for name in state if (match := re.match(r"blocks\.(\d+)\.", name)))
    hidden, side = len(state["blocks.0.mlp.fc1.bias"]), round(state["pos_embed"].shape[1] ** 0.5)
    spec = ImageEncoderSpec(found, width, heads, hidden, patch, patch * side)
    return fit_weights(ImageEncoder(spec), state, load)
