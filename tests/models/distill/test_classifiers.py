"""Classifiers on distilled encoders: published sizes and learning rates, pooling, freezing, and BERT's pooler."""

import dataclasses

import pytest
import torch

from clip_vl.models.distill.classifiers import ImageClassifier, TextClassifier, decayed_groups
from clip_vl.models.distill.image_encoder import ImageEncoder, ImageEncoderSpec
from clip_vl.models.distill.text_encoder import TextEncoder
from clip_vl.models.fused.bert import BertConfig

SMALL = ImageEncoderSpec(blocks=6, width=24, heads=2, hidden=48, patch=4, resolution=8)
RATES = [0.0002287679, 0.0002824295, 0.0003486784, 0.0004304672, 0.000531441, 0.0006561, 0.00081, 0.001]


def test_learning_rates_of_layers_are_the_published_ones():
    """Golden value `layer_decay`: 0.81 per layer below the head, which has 1e-3."""
    groups = decayed_groups(ImageClassifier(ImageEncoder(SMALL), 10), 1e-3, 0.81, 0.01)
    assert [group["lr"] for group in groups] == pytest.approx(RATES, rel=1e-6)
    names = {id(p): n for n, p in ImageClassifier(ImageEncoder(SMALL), 10).named_parameters()}
    assert len(groups[0]["params"]) == 5 and len(groups[-1]["params"]) == 4  # the position table is fixed
    assert sum(len(group["params"]) for group in groups) == len(names) - 1


def test_the_published_classifier_has_43_9_million_trained_parameters():
    with torch.device("meta"):
        model = ImageClassifier(ImageEncoder(ImageEncoderSpec()), 1000)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 43_890_664


def test_patches_are_pooled_without_the_class_token_and_linear_evaluation_trains_the_head_alone():
    torch.manual_seed(0)
    encoder, images = ImageEncoder(SMALL), torch.randn(2, 3, 8, 8)
    model = ImageClassifier(encoder, 5, frozen=True)
    with torch.no_grad():
        tokens = encoder(images)
    torch.testing.assert_close(model(images), model.head(model.head_norm(tokens[:, 1:].mean(1))))
    by_class_token = ImageClassifier(encoder, 5, "cls")
    expected = by_class_token.head(by_class_token.head_norm(tokens[:, 0]))
    torch.testing.assert_close(by_class_token(images), expected)
    model(images).sum().backward()
    trained = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {"head_norm.weight", "head_norm.bias", "head.weight", "head.bias"}
    assert [group["lr"] for group in decayed_groups(model, 1e-3, 1.0, 0.01)] == [1e-3]


def test_the_text_classifier_is_transformers_bert_for_sequence_classification():
    from transformers import BertConfig as HfConfig
    from transformers import BertForSequenceClassification

    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                        max_position_embeddings=16)  # fmt: skip
    theirs = BertForSequenceClassification(HfConfig(**dataclasses.asdict(config), num_labels=3)).eval()
    model = TextClassifier(TextEncoder(config), 3).eval()
    names = {"bert.pooler.": "pooler.", "bert.": "encoder.", "classifier.": "head."}
    state = {}
    for name, tensor in theirs.state_dict().items():
        prefix = next(prefix for prefix in names if name.startswith(prefix))
        state[names[prefix] + name.removeprefix(prefix)] = tensor
    model.load_state_dict(state)
    ids, segments = torch.tensor([[3, 4, 5, 6], [7, 8, 0, 0]]), torch.tensor([[0, 0, 1, 1], [0, 1, 0, 0]])
    mask = (ids != 0).int()
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, token_type_ids=segments).logits
        torch.testing.assert_close(model(ids, mask, segments), expected, rtol=1e-5, atol=1e-6)
