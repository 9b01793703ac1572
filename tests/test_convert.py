"""Checkpoints in other forms: nothing changes on the way, and others compute the same with them."""

import json

import pytest
import torch
import transformers
from safetensors import safe_open

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.grid import GridConfig
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.encoder import VLClassifier, VLEncoder, VLPretrainer
from clip_vl.models.fused.exchange import write_lxmert_folder
from clip_vl.models.fused.pretrained import detect_layers, load_bert, state_for_exchange
from clip_vl.models.fused.visual_tokens import RegionConfig, Regions
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.loading.weights import load_weights

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


REGION_HEADS = {"obj": 7, "attr": 5, "feat": 12}


def lxmert(folder):
    """A two-stream model of regions with LXMERT's layers and all heads, every weight random."""
    layers = {"num_layers": 9, "cross_layers": 5, "visual_layers": 5}
    torch.manual_seed(0)
    encoder = VLEncoder(BertConfig.from_folder(folder), RegionConfig(12), **layers)
    model = VLPretrainer(encoder, num_answers=3, region_losses=REGION_HEADS)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@torch.no_grad()
def test_transformers_lxmert_computes_the_same_with_boxes_and_all_heads(programs, shapes_root, tmp_path):
    bert = shapes_root / "bert-base-uncased"
    model = lxmert(bert)
    torch.save({f"module.{n}": tensor for n, tensor in state_for_exchange(model).items()}, tmp_path / "Epoch1_LXRT.pth")
    programs.run("convert", tmp_path / "Epoch1_LXRT.pth", tmp_path / "lxmert", "--bert", bert)
    theirs, report = transformers.LxmertForPreTraining.from_pretrained(tmp_path / "lxmert", output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    ids = torch.randint(5, 60, (2, 9))
    mask = torch.tensor([[1] * 9, [1] * 6 + [0] * 3])
    regions = Regions(torch.randn(2, 4, 12), torch.rand(2, 4, 4), torch.tensor([[True] * 4, [True] * 3 + [False]]))
    targets = torch.where(mask == 1, ids, -1)
    ours = model(regions, ids, mask, targets, answer=torch.tensor([0, 2]))
    text, visual, pooled = model.bert(regions, ids, mask)
    inputs = ids, regions.features, regions.boxes, mask
    states = theirs.eval().lxmert(*inputs, visual_attention_mask=regions.visible.float())
    assert torch.allclose(text[mask == 1], states.language_output[mask == 1], atol=1e-5)
    assert torch.allclose(visual[regions.visible], states.vision_output[regions.visible], atol=1e-5)
    assert torch.allclose(pooled, states.pooled_output, atol=1e-5)
    out = theirs(*inputs, visual_attention_mask=regions.visible.float())
    assert torch.allclose(ours["mlm_logits"], out.prediction_logits[mask == 1], atol=1e-5)
    assert torch.allclose(ours["match_logits"], out.cross_relationship_score, atol=1e-5)
    assert torch.allclose(ours["answer_logits"], out.question_answering_score, atol=1e-5)
    heads = theirs.obj_predict_head(visual)
    assert all(torch.allclose(ours["regions"][name], heads[name], atol=1e-5) for name in REGION_HEADS)

    programs.run("convert", tmp_path / "lxmert", tmp_path / "again.pth")
    before, after = (torch.load(tmp_path / f"{n}.pth", weights_only=True) for n in ("Epoch1_LXRT", "again"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@torch.no_grad()
def test_a_fine_tuned_lxmert_answers_the_same_in_transformers(programs, shapes_root, tmp_path):
    bert = shapes_root / "bert-base-uncased"
    model = VLClassifier(lxmert(bert).bert, num_answers=6).eval()
    torch.save(state_for_exchange(model), tmp_path / "BEST.pth")
    programs.run("convert", tmp_path / "BEST.pth", tmp_path / "lxmert", "--bert", bert)
    theirs = transformers.LxmertForQuestionAnswering.from_pretrained(tmp_path / "lxmert").eval()
    ids, features, boxes = torch.randint(5, 60, (2, 9)), torch.randn(2, 4, 12), torch.rand(2, 4, 4)
    mask = torch.ones(2, 9, dtype=torch.long)
    ours = model(Regions(features, boxes, torch.ones(2, 4, dtype=torch.bool)), ids, mask)
    assert torch.allclose(ours, theirs(ids, features, boxes, mask).question_answering_score, atol=1e-5)
    programs.run("convert", tmp_path / "lxmert", tmp_path / "again.pth")
    again = torch.load(tmp_path / "again.pth", weights_only=True)
    assert again.keys() == model.state_dict().keys()


def test_a_model_without_tanh_becomes_no_lxmert_folder(tmp_path):
    state = {"bert.encoder.visn_fc.box_fc.weight": torch.zeros(2, 4)}
    with pytest.raises(UserError, match="--no-pooler_tanh"):
        write_lxmert_folder(state, tmp_path / "lxmert", tmp_path, {"pooler_tanh": False})
    assert not list(tmp_path.iterdir())


def test_two_streams_with_clips_tower_become_no_lxmert_folder(tmp_path):
    """CLIP-ViL's files hold unused box weights beside the tower; transformers would add a tanh that they have not."""
    names = ("visn_fc.box_fc.weight", "visual_model.visual.conv1.weight")
    state = {f"bert.encoder.{name}": torch.zeros(1) for name in names}
    with pytest.raises(UserError, match="regions of a detector with their boxes"):
        write_lxmert_folder(state, tmp_path / "lxmert", tmp_path, {})


@pytest.fixture
def sizes(shapes_root):
    """The sizes of the built-in data's BERT, as transformers' LXMERT takes them, with few layers and classes."""
    config = json.loads((shapes_root / "bert-base-uncased" / "config.json").read_text())
    del config["model_type"], config["num_hidden_layers"]
    return transformers.LxmertConfig(
        **config, l_layers=1, x_layers=2, r_layers=1, visual_feat_dim=12, num_qa_labels=3, num_object_labels=7,
        num_attr_labels=5,
    )  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize("form", ["pth", "safetensors"])
def test_a_model_that_transformers_saved_gives_the_same_here(programs, sizes, shapes_root, tmp_path, form):
    torch.manual_seed(1)
    theirs = transformers.LxmertForPreTraining(sizes).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    programs.run("convert", tmp_path / "theirs", tmp_path / f"Epoch20_LXRT.{form}")
    state = read_state_dict(tmp_path / f"Epoch20_LXRT.{form}")
    encoder = VLEncoder(
        BertConfig.from_folder(shapes_root / "bert-base-uncased"), RegionConfig(12), **detect_layers(state)
    )
    model = VLPretrainer(encoder, num_answers=3, region_losses=REGION_HEADS).eval()
    assert load_weights(model, state) == ""
    ids, mask = torch.randint(5, 60, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    regions = Regions(torch.randn(2, 4, 12), torch.rand(2, 4, 4), torch.ones(2, 4, dtype=torch.bool))
    ours = model(regions, ids, mask, ids, answer=torch.tensor([0, 2]))
    out = theirs(ids, regions.features, regions.boxes, mask)
    assert torch.allclose(ours["mlm_logits"], out.prediction_logits.flatten(0, 1), atol=1e-5)
    assert torch.allclose(ours["match_logits"], out.cross_relationship_score, atol=1e-5)
    assert torch.allclose(ours["answer_logits"], out.question_answering_score, atol=1e-5)


@torch.no_grad()
def test_a_fine_tuned_model_that_transformers_saved_answers_the_same_here(programs, sizes, shapes_root, tmp_path):
    torch.manual_seed(1)
    theirs = transformers.LxmertForQuestionAnswering(sizes).eval()
    theirs.save_pretrained(tmp_path / "theirs")
    programs.run("convert", tmp_path / "theirs", tmp_path / "BEST.pth")
    state = read_state_dict(tmp_path / "BEST.pth")
    encoder = VLEncoder(
        BertConfig.from_folder(shapes_root / "bert-base-uncased"), RegionConfig(12), **detect_layers(state)
    )
    model = VLClassifier(encoder, num_answers=3).eval()
    assert load_weights(model, state) == ""
    ids, mask, features, boxes = (
        torch.randint(5, 60, (2, 9)),
        torch.ones(2, 9),
        torch.randn(2, 4, 12),
        torch.rand(2, 4, 4),
    )
    ours = model(Regions(features, boxes, torch.ones(2, 4, dtype=torch.bool)), ids, mask)
    assert torch.allclose(ours, theirs(ids, features, boxes, mask).question_answering_score, atol=1e-5)


def test_what_cannot_be_converted_is_refused_and_leaves_nothing(programs, published, shapes_root, tmp_path):
    _, path = published
    two = pretrainer(shapes_root / "bert-base-uncased", cross_layers=1)
    torch.save(state_for_exchange(two), tmp_path / "two.pth")
    bert = shapes_root / "bert-base-uncased"
    (tmp_path / "there.pth").touch()
    for source, target, sentence in (
        (path, "model.bin", "ends in .bin"),
        (path, "there.pth", "exists already"),
        (tmp_path / "two.pth", "bert", "regions of a detector with their boxes"),
        (tmp_path / "missing.pth", "x.pth", "missing"),
    ):
        with pytest.raises(UserError, match=sentence):
            programs.run("convert", source, tmp_path / target, "--bert", bert)
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {"Epoch01_LXRT.pth", "two.pth", "there.pth"} and len(read_state_dict(path)) > 10
