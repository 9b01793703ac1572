"""The two-stream encoder against transformers' LXMERT with the same random weights."""

import pytest
import torch
from transformers import LxmertConfig, LxmertModel

from clip_vl.flags.fused import SETTINGS
from clip_vl.models.clip.grid import GridConfig
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.checkpoints import save_task
from clip_vl.models.fused.encoder import VLClassifier, VLEncoder, VLPretrainer
from clip_vl.models.fused.pretrained import detect_layers
from clip_vl.models.loading.settings import read_settings

SIZES = {"vocab_size": 60, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 96}
CONFIG = BertConfig(**SIZES, num_hidden_layers=3, max_position_embeddings=16)
LAYERS = {"num_layers": 3, "cross_layers": 2, "visual_layers": 1}
GRID = GridConfig((1, 1), 8)  # stride 8


def encoder(**options):
    torch.manual_seed(0)
    model = VLEncoder(CONFIG, GRID, **LAYERS, positional_embedding=True, **options)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def batch(B=3):
    generator = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (B, 3, 32, 48), dtype=torch.uint8, generator=generator)
    input_ids = torch.randint(1, 60, (B, 7), generator=generator)
    attention_mask = (torch.arange(7) < torch.tensor([7, 4, 5])[:B, None]).long()
    return images, input_ids * attention_mask, attention_mask


class TokensAsTheyAre(torch.nn.Module):
    """In the place of LXMERT's embedding of regions: ours has done it."""

    def forward(self, features, _boxes):
        return features


def lxmert(model):
    """transformers' model with our weights: every parameter but the visual embedding has the same name."""
    config = LxmertConfig(
        **SIZES, max_position_embeddings=16, l_layers=3, x_layers=2, r_layers=1, visual_feat_dim=48,
    )  # fmt: skip
    theirs = LxmertModel(config).eval()
    theirs.encoder.visn_fc = TokensAsTheyAre()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("encoder.vis")}
    theirs.load_state_dict(state, strict=True)
    return theirs


@torch.no_grad()
def test_both_streams_and_the_pooled_vector_are_lxmerts():
    model, (images, input_ids, attention_mask) = encoder(), batch()
    boxes = torch.tensor([[0, 0, 32, 48], [0, 8, 32, 16], [8, 0, 8, 48]])  # so that visual tokens are masked too
    text_states, visual_states, pooled = model(images, input_ids, attention_mask, image_boxes=boxes)
    tokens, visible = model.encoder.visual_tokens(text_states, images, None, boxes)
    assert not visible.all()
    theirs = lxmert(model)(input_ids, tokens, torch.zeros(3, 24, 4), attention_mask, visual_attention_mask=visible)
    keep = attention_mask.bool()
    assert torch.allclose(text_states[keep], theirs.language_output[keep], atol=1e-5)
    assert torch.allclose(visual_states[visible], theirs.vision_output[visible], atol=1e-5)
    assert torch.allclose(pooled, theirs.pooled_output, atol=1e-5)


def test_every_weight_learns():
    """The last cross layer's image half feeds no loss, as in LXMERT without its region losses; all else must move."""
    model = VLPretrainer(encoder(), num_answers=4).train()
    images, input_ids, attention_mask = batch()
    targets = torch.where(attention_mask == 1, input_ids, -1)
    out = model(images, input_ids, attention_mask, targets, answer=torch.tensor([0, 1, 2]))
    sum(out[name].square().sum() for name in ("mlm_logits", "match_logits", "answer_logits")).backward()
    silent = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    last = "bert.encoder.x_layers.1."
    tail = {n for n, _ in model.named_parameters() if n.startswith((f"{last}visn_",))}
    assert silent - {"bert.embeddings.token_type_embeddings.weight"} <= tail | {
        n
        for n in silent
        if n.endswith("key.bias")  # softmax does not see it
    }


def test_a_text_only_model_needs_no_image():
    torch.manual_seed(0)
    model = VLClassifier(VLEncoder(CONFIG, None, **LAYERS), num_answers=5).eval()
    _, input_ids, attention_mask = batch()
    logits = model(None, input_ids, attention_mask)
    assert logits.shape == (3, 5) and logits.isfinite().all()


@pytest.mark.parametrize("tanh", [True, False])
def test_a_checkpoint_says_whether_its_pooler_ends_in_tanh(tmp_path, tanh):
    """No weight says it: without the record an evaluation would build the other model, and nothing would fail."""
    model = VLClassifier(encoder(pooler_tanh=tanh), num_answers=5)
    save_task(tmp_path, model, True, {"max_length": 20})
    assert read_settings(tmp_path / "BEST.pth").values == {"max_length": 20, "pooler_tanh": tanh}
    assert "pooler_tanh" in SETTINGS  # those that are taken over


@pytest.mark.parametrize("prefix", ["", "bert.", "lxrt_encoder.model.bert."])
def test_the_layers_of_a_checkpoint_are_counted(prefix):
    state = {prefix + name: tensor for name, tensor in encoder().state_dict().items()}
    assert detect_layers(state) == LAYERS
