"""The heads against transformers' and against the layers they are written from."""

import torch
import transformers

from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.heads import AnswerHead, PretrainHeads, answer_layers

CONFIG = BertConfig(vocab_size=60, hidden_size=48, num_hidden_layers=1, num_attention_heads=4, intermediate_size=96)


@torch.no_grad()
def test_pretraining_heads_agree_with_transformers():
    torch.manual_seed(0)
    theirs = transformers.BertForPreTraining(transformers.BertConfig(**vars(CONFIG))).eval()
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = PretrainHeads(CONFIG)
    heads = theirs.cls.state_dict()
    ours.load_state_dict({key: value for key, value in heads.items() if "decoder" not in key}, strict=True)
    states, pooled = torch.randn(5, 48), torch.randn(2, 48)
    words, matching = theirs.cls(states, pooled)
    table = theirs.bert.embeddings.word_embeddings.weight
    assert torch.allclose(ours.predictions(states, table), words, atol=1e-5)
    assert torch.allclose(ours.seq_relationship(pooled), matching, atol=1e-5)


def test_the_answer_head_is_linear_gelu_norm_linear():
    head = AnswerHead(CONFIG, 7)
    assert [type(layer).__name__ for layer in head.logit_fc] == ["Linear", "GELU", "LayerNorm", "Linear"]
    assert [tuple(p.shape) for p in head.parameters()] == [(96, 48), (96,), (96,), (96,), (7, 96), (7,)]
    assert head.logit_fc[2].eps == 1e-12
    pooled = torch.randn(2, 48)
    assert torch.equal(head(pooled), head.logit_fc(pooled))


def test_zero_rows_give_zero_gradients_and_not_none():
    heads, answers, table = PretrainHeads(CONFIG), answer_layers(CONFIG, 7), torch.randn(60, 48, requires_grad=True)
    empty = torch.randn(0, 48)
    (heads.predictions(empty, table).sum() + heads.seq_relationship(empty).sum() + answers(empty).sum()).backward()
    for parameter in (*heads.parameters(), *answers.parameters(), table):
        assert torch.equal(parameter.grad, torch.zeros_like(parameter))
