"""Published files are read as data: stubs for foreign classes, both prefixes of students, BERT's old names."""

import argparse
import dataclasses

import pytest
import torch

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.distill.files import fit_weights, read_bert, read_student, read_tensors
from clip_vl.models.distill.student import Student, StudentSpec
from clip_vl.models.distill.text_encoder import TextEncoder
from clip_vl.models.fused.bert import BertConfig

TEXT = BertConfig(vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                  max_position_embeddings=16)  # fmt: skip


class Foreign:
    """A class that the reader does not know; unpickled by others it would run code."""

    ran = []

    def __reduce__(self):
        return Foreign.ran.append, (1,)


class Container(dict):
    """Another one, with items and a state."""


@pytest.mark.parametrize("legacy", [False, True])
def test_objects_of_other_libraries_are_skipped_and_nothing_runs(tmp_path, legacy):
    weight, path = torch.randn(3, 2).half(), tmp_path / "model.pt"
    content = {"cfg": {"args": argparse.Namespace(lr=1.0), "more": [Foreign(), Container(a=1)]},
               "model": {"a.weight": weight, "_ema": {"a.weight": weight}, "step": 3}}  # fmt: skip
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    state = read_tensors(path)
    assert list(state) == ["a.weight"] and torch.equal(state["a.weight"], weight.float())
    assert not Foreign.ran


def test_a_damaged_or_missing_file_is_one_sentence(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"model": {"a": torch.randn(400)}}, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match="fetch it again"):
        read_tensors(path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(DataError, match="fetch it again"):
        read_tensors(path)
    with pytest.raises(UserError, match=r"is missing\. Fetch"):
        read_tensors(tmp_path / "none.pt", "Fetch it")


def bert_state(layers):
    state = TextEncoder(dataclasses.replace(TEXT, num_hidden_layers=layers)).state_dict()
    return state | {"pooler.dense.weight": torch.randn(24, 24), "pooler.dense.bias": torch.randn(24)}


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_the_first_layers_of_bert_are_read_under_old_names_and_new(tmp_path, prefix):
    whole = bert_state(4)
    old = {f"{prefix}{name}".replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"):
           tensor for name, tensor in whole.items()}  # fmt: skip
    torch.save(old | {"cls.predictions.bias": torch.zeros(30)}, tmp_path / "pytorch_model.bin")
    state, dropped = read_bert(tmp_path / "pytorch_model.bin", layers=2)
    assert dropped == {"later layers": 32, "cls": 1}
    assert all(torch.equal(state.pop(name), whole[name]) for name in ("pooler.dense.weight", "pooler.dense.bias"))
    encoder = fit_weights(TextEncoder(TEXT), state, "the file")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in encoder.state_dict().items())


def test_a_wrong_shape_is_named(tmp_path):
    state = TextEncoder(TEXT).state_dict() | {"embeddings.word_embeddings.weight": torch.zeros(31, 24)}
    with pytest.raises(DataError, match=r"word_embeddings.weight +\(31, 24\) +\(30, 24\)"):
        fit_weights(TextEncoder(TEXT), state, "the file")


@pytest.mark.parametrize("prefix", ["model.", "module.model.", ""])
def test_a_students_checkpoint_is_read_with_and_without_the_published_prefixes(tmp_path, prefix):
    from clip_vl.models.distill.image_encoder import ImageEncoderSpec

    image = ImageEncoderSpec(blocks=1, width=24, heads=2, hidden=48, patch=4, resolution=8)
    student = Student(StudentSpec(image=image, text=TEXT))
    state = {f"{prefix}{name}": tensor for name, tensor in student.state_dict().items()}
    beside = {"logit_scale_target": torch.zeros(()), "kd_loss_mb.target_memory_bank": torch.zeros(8, 24)}
    if prefix:
        state |= beside
    torch.save({"state_dict": state, "hyper_parameters": argparse.Namespace()}, tmp_path / "model.ckpt")
    other = fit_weights(Student(StudentSpec(image=image, text=TEXT)), read_student(tmp_path / "model.ckpt"), "it")
    assert all(torch.equal(a, b) for a, b in zip(student.state_dict().values(), other.state_dict().values()))
