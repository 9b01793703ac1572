"""Attention and dropout put into Hugging Face models: the same numbers as theirs."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import BertConfig, BertModel, GPT2Config, GPT2Model, PreTrainedModel

from clip_vl.models.dropout import Dropout
from clip_vl.models.towers.hf_attention import NAME, attention, attention_of, cheapen_dropout, use_own_attention

BERT = BertConfig(vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=40)


def test_the_scale_a_model_asks_for_counts():
    query, key, value = torch.randn(3, 2, 4, 5, 8)
    mask = torch.randn(2, 1, 5, 5)
    for scaling in (None, 8**-0.5, 1.0):
        expected = F.scaled_dot_product_attention(query, key, value, mask, scale=scaling)
        found, weights = attention(None, query, key, value, mask, scaling=scaling)
        assert weights is None and torch.allclose(found.transpose(1, 2), expected, atol=1e-5)


@torch.no_grad()
def test_a_model_built_before_is_switched_and_a_causal_one_stays_causal():
    ids, keep = torch.randint(3, 30, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    gpt = GPT2Config(vocab_size=30, n_positions=16, n_embd=32, n_layer=1, n_head=4)
    for model in (BertModel(BERT).eval(), GPT2Model(gpt).eval()):
        expected = model(input_ids=ids, attention_mask=keep).last_hidden_state
        use_own_attention(model)
        assert model.config._attn_implementation == NAME
        found = model(input_ids=ids, attention_mask=keep).last_hidden_state
        assert torch.allclose(found[keep > 0], expected[keep > 0], atol=1e-5)


def test_models_that_compute_attention_themselves_keep_theirs():
    class Own(PreTrainedModel):
        _supports_attention_backend = False

    assert attention_of(Own) is None and attention_of(BertModel) == NAME


def test_dropouts_are_replaced_and_names_are_not():
    model = BertModel(BERT)
    names = list(model.state_dict())
    cheapen_dropout(model)
    assert list(model.state_dict()) == names
    assert not any(type(part) is nn.Dropout for part in model.modules())
    assert {part.p for part in model.modules() if isinstance(part, Dropout)} == {0.1}
