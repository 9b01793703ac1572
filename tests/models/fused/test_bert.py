"""Our BERT against transformers', with the same random weights."""

import json

import pytest
import torch
import transformers

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.fused.bert import BertConfig, BertEmbeddings, BertLayer, BertPooler, attention_bias

CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=96,
    max_position_embeddings=16,
)


def reference():
    """transformers' model with every parameter random, biases and LayerNorms included."""
    torch.manual_seed(1)
    model = transformers.BertModel(transformers.BertConfig(**vars(CONFIG))).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def load(module, reference_module):
    module.load_state_dict(reference_module.state_dict(), strict=True)
    return module.eval()


def batch():
    input_ids = torch.randint(1, CONFIG.vocab_size, (3, 9))
    attention_mask = (torch.arange(9) < torch.tensor([[9], [5], [2]])).long()
    return input_ids * attention_mask, attention_mask


@torch.no_grad()
def test_embeddings_layers_and_pooler_agree_with_transformers():
    theirs = reference()
    embeddings = load(BertEmbeddings(CONFIG), theirs.embeddings)
    pooler = load(BertPooler(CONFIG, tanh=True), theirs.pooler)
    layers = [load(BertLayer(CONFIG), layer) for layer in theirs.encoder.layer]
    input_ids, attention_mask = batch()
    expected = theirs(input_ids, attention_mask=attention_mask, output_hidden_states=True)

    x = embeddings(input_ids)
    assert torch.allclose(x, expected.hidden_states[0], atol=1e-5)
    kept = attention_mask.bool()
    for layer, hidden in zip(layers, expected.hidden_states[1:]):
        x = layer(x, attention_bias(attention_mask))
        assert torch.allclose(x[kept], hidden[kept], atol=1e-5)
    assert torch.allclose(pooler(x), expected.pooler_output, atol=1e-5)


def test_the_pooler_of_clip_vil_has_no_tanh():
    pooler = BertPooler(CONFIG)
    x = 100 * torch.randn(2, 3, CONFIG.hidden_size)
    assert torch.equal(pooler(x), pooler.dense(x[:, 0]))


def test_row_zero_of_the_tables_gets_a_zero_gradient():
    embeddings = BertEmbeddings(CONFIG)
    embeddings(batch()[0]).square().sum().backward()
    for table in (embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings):
        assert table.weight.grad[0].abs().max() == 0
    assert embeddings.position_embeddings.weight.grad[1].abs().max() > 0


def test_gradients_agree_with_transformers():
    theirs = reference()
    ours = load(BertLayer(CONFIG), theirs.encoder.layer[0])
    x = torch.randn(2, 5, CONFIG.hidden_size)
    ours(x).square().sum().backward()
    hidden = theirs.encoder.layer[0](x)
    (hidden[0] if isinstance(hidden, tuple) else hidden).square().sum().backward()
    for (name, ours_p), theirs_p in zip(ours.named_parameters(), theirs.encoder.layer[0].parameters()):
        assert torch.allclose(ours_p.grad, theirs_p.grad, rtol=1e-4, atol=1e-3), name


def test_a_config_is_read_from_its_folder_and_unknown_keys_are_passed_over(tmp_path):
    values = {"hidden_size": 384, "num_hidden_layers": 6, "model_type": "bert", "hidden_act": "gelu"}
    (tmp_path / "config.json").write_text(json.dumps(values))
    config = BertConfig.from_folder(tmp_path)
    assert (config.hidden_size, config.num_hidden_layers, config.vocab_size) == (384, 6, 30522)


def test_a_missing_config_is_named_with_where_it_comes_from_and_the_flag(tmp_path):
    with pytest.raises(UserError, match=r"config\.json is missing: .*huggingface\.co/google-bert.*--bert"):
        BertConfig.from_folder(tmp_path, hint="--bert points to the folder")


@pytest.mark.parametrize(
    "text, error, message",
    [
        ("{", DataError, "not valid JSON"),
        ("[1]", DataError, "one JSON object"),
        ('{"hidden_size": "768"}', DataError, "hidden_size must be a number of type int, not '768'"),
        ('{"hidden_size": 100, "num_attention_heads": 12}', DataError, "hidden_size 100 must be a multiple"),
        ('{"hidden_act": "relu"}', UserError, "hidden_act is 'relu'"),
    ],
)
def test_a_config_that_cannot_work_is_named(tmp_path, text, error, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(error, match=message):
        BertConfig.from_folder(tmp_path)
