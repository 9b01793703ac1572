"""The student: text side as transformers' BERT, what padding does, its switches, and what is trained."""

import dataclasses
import math

import pytest
import torch

from clip_vl.engine.errors import UserError
from clip_vl.models.distill.image_encoder import ImageEncoderSpec, sine_positions
from clip_vl.models.distill.student import Student, StudentSpec
from clip_vl.models.distill.text_encoder import TextEncoder, random_text_encoder, trim
from clip_vl.models.fused.bert import BertConfig

TEXT = BertConfig(vocab_size=30, hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
                  max_position_embeddings=16, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)  # fmt: skip
IMAGE = ImageEncoderSpec(blocks=2, width=24, heads=2, hidden=48, patch=4, resolution=8)
SPEC = StudentSpec(image=IMAGE, text=TEXT)
IDS = torch.tensor([[3, 4, 5, 6, 0, 0], [7, 8, 0, 0, 0, 0]])
MASK = (IDS != 0).int()


def student(**changes):
    torch.manual_seed(0)
    built = Student(dataclasses.replace(SPEC, **changes)).eval()
    random_text_encoder(built.text_model, std=0.2)
    return built


def test_the_text_encoder_is_transformers_bert_with_segments():
    from transformers import BertConfig as HfConfig
    from transformers import BertModel

    torch.manual_seed(0)
    sizes = dataclasses.asdict(TEXT)
    theirs = BertModel(HfConfig(**sizes), add_pooling_layer=False).eval()
    ours = TextEncoder(TEXT).eval()
    ours.load_state_dict({n: t for n, t in theirs.state_dict().items() if "position_ids" not in n})
    segments = torch.tensor([[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]])
    for segment_ids in (segments, None):
        with torch.no_grad():
            expected = theirs(IDS, attention_mask=MASK, token_type_ids=segment_ids).last_hidden_state
            found = ours(IDS, MASK, segment_ids)
        torch.testing.assert_close(found[MASK == 1], expected[MASK == 1], rtol=1e-5, atol=1e-5)


def test_padding_changes_no_output_and_may_be_trimmed():
    model, other = student(), IDS.clone()
    other[MASK == 0] = 9
    with torch.no_grad():
        expected = model.text_outputs(IDS, MASK)
        for ids, mask in ((other, MASK), trim(IDS, MASK)):
            found = model.text_outputs(ids, mask)
            assert all(torch.allclose(found[name], expected[name], atol=1e-6) for name in expected)
    assert trim(IDS, MASK)[0].shape == (2, 4)


def test_outputs_are_normalised_but_for_the_head():
    outputs = student()(torch.randn(2, 3, 8, 8), IDS, MASK)
    for side in ("image", "text"):
        shapes = {name: tuple(tensor.shape) for name, tensor in outputs[side].items()}
        assert shapes == {"x_interm": (2, 48), "x": (2, 24), "encoder_out": (2, 24)}
        assert torch.allclose(outputs[side]["x"].norm(dim=1), torch.ones(2))
        assert torch.allclose(outputs[side]["x_interm"].norm(dim=1), torch.ones(2))


@pytest.mark.parametrize("token_types", ["after", "before", "off"])
def test_token_types_are_added_after_or_before_the_encoders_or_not_at_all(token_types):
    model = student(token_types=token_types)
    assert hasattr(model, "tte_scale") == (token_types != "off")
    with torch.no_grad():
        before = model.encode_text(IDS, MASK)
        if token_types == "off":
            return
        model.tte_scale.gamma.fill_(1.0)
        after = model.encode_text(IDS, MASK)
        assert not torch.allclose(before, after, atol=1e-3)
        states = model.text_model(IDS, MASK)
        moved = model.text_model(IDS, MASK, added=model.token_type_embeddings.weight[0])
        tokens = moved if token_types == "before" else states + model.token_type_embeddings.weight[0]
        expected = model._outputs(tokens, None, (MASK[:, None, None] == 0) * -10000.0)["x"]
    torch.testing.assert_close(after, expected)


def test_everything_is_trained_but_the_position_table():
    model = student()
    outputs = model(torch.randn(2, 3, 8, 8), IDS, MASK)
    sum(tensor.square().sum() * (1 + i) for i, side in enumerate(("image", "text"))
        for tensor in outputs[side].values()).backward()  # fmt: skip
    frozen = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert frozen == {"image_model.pos_embed", "logit_scales"}  # the losses read the temperatures


def test_initial_values_are_the_published_ones():
    model, published = student(), student(init="normal")
    assert model.shared.ls1.gamma.unique().item() == pytest.approx(0.2)
    assert model.tte_scale.gamma.unique().item() == pytest.approx(1e-5)
    assert model.logit_scales.tolist() == pytest.approx([math.log(1 / 0.07)] * 2)
    assert model.head.weight.abs().max() <= 0.02 < published.head.weight.abs().max()
    assert model.token_type_embeddings.weight.std() > 0.5 > published.token_type_embeddings.weight.std()
    assert not [name for name in student(shared_layerscale=False).state_dict() if name.startswith("shared.ls")]
    with torch.no_grad():
        model.logit_scales.copy_(torch.tensor([-1.0, 9.0]))
    model.clamp_scales()
    assert model.logit_scales.tolist() == pytest.approx([0, 4.6052])


def test_the_position_table_is_timms():
    from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

    table = sine_positions(4, 24)[0]
    theirs = build_sincos2d_pos_embed([4, 4], dim=24)
    assert torch.allclose(table.sort(1).values, theirs.sort(1).values, atol=1e-5)  # timm interleaves otherwise
    assert torch.allclose(table @ table.T, theirs @ theirs.T, atol=1e-4)


def test_encoders_of_two_widths_are_refused():
    with pytest.raises(UserError, match="width 24 and the text encoder 48"):
        Student(dataclasses.replace(SPEC, text=dataclasses.replace(TEXT, hidden_size=48)))
