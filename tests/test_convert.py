"""Checkpoints in other forms: nothing changes on the way, and others compute the same with them."""

import pytest
import torch
import transformers
from safetensors import safe_open

from clip_vl.engine.errors import UserError
from clip_vl.models.bert import BertConfig
from clip_vl.models.clip import GridConfig
from clip_vl.models.vl_encoder import VLEncoder, VLPretrainer
from clip_vl.models.weights import load_bert, read_state_dict, state_for_exchange

GRID = GridConfig((1, 1), 8)


def pretrainer(folder, **layers):
    torch.manual_seed(0)
    model = VLPretrainer(VLEncoder(BertConfig.from_folder(folder), GRID, **layers), num_answers=3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


@pytest.fixture
def published(shapes_root, tmp_path):
    """(the model, its checkpoint as pre-training saves it)."""
    model = pretrainer(shapes_root / "bert-base-uncased")
    path = tmp_path / "Epoch01_LXRT.pth"
    torch.save({f"module.{name}": tensor for name, tensor in state_for_exchange(model).items()}, path)
    return model, path


def test_to_safetensors_and_back_is_the_same_checkpoint(programs, published, tmp_path):
    _, path = published
    programs.run("convert", path, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "bert.embeddings.word_embeddings.weight" in file.keys()
    programs.run("convert", tmp_path / "model.safetensors", tmp_path / "again.pth")
    before, after = (torch.load(p, weights_only=True) for p in (path, tmp_path / "again.pth"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_transformers_computes_the_same_words_from_the_text_half(programs, published, shapes_root, tmp_path):
    model, path = published
    programs.run("convert", path, tmp_path / "bert", "--bert", shapes_root / "bert-base-uncased")
    theirs, report = transformers.BertForPreTraining.from_pretrained(tmp_path / "bert", output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    ids, mask = torch.randint(5, 60, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    text = model.bert.embeddings(ids)
    states, _ = model.bert.encoder(text, mask, None, None, None)
    words = model.cls.predictions(states, model.bert.embeddings.word_embeddings.weight)
    assert torch.allclose(theirs.eval()(ids, attention_mask=mask).prediction_logits, words, atol=1e-5)


def test_a_converted_folder_starts_another_model(programs, published, shapes_root, tmp_path):
    model, path = published
    programs.run("convert", path, tmp_path / "bert", "--bert", shapes_root / "bert-base-uncased")
    other = VLPretrainer(VLEncoder(BertConfig.from_folder(tmp_path / "bert"), GRID))
    load_bert(other, tmp_path / "bert")
    weight = "bert.encoder.layer.1.output.dense.weight"
    assert torch.equal(other.state_dict()[weight], model.state_dict()[weight])


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(programs, published, shapes_root, tmp_path):
    _, path = published
    two = pretrainer(shapes_root / "bert-base-uncased", cross_layers=1)
    torch.save(state_for_exchange(two), tmp_path / "two.pth")
    bert = shapes_root / "bert-base-uncased"
    (tmp_path / "there.pth").touch()
    for source, target, sentence in (
        (path, "model.bin", "ends in .bin"),
        (path, "there.pth", "exists already"),
        (tmp_path / "two.pth", "bert", "two-stream"),
        (tmp_path / "missing.pth", "x.pth", "missing"),
    ):
        with pytest.raises(UserError, match=sentence):
            programs.run("convert", source, tmp_path / target, "--bert", bert)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"Epoch01_LXRT.pth", "two.pth", "there.pth"} and len(read_state_dict(path)) > 10
