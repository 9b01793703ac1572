"""Heads layer by layer, prototypes against torch's weight norm, and the rule for the joint width."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine.errors import UserError
from clip_vl.models.dual.heads import PrototypeLayer, build_head, joint_dim


def test_no_layers_change_nothing_and_keep_the_width():
    features = torch.randn(3, 7)
    head = build_head("dino", 7, 0, 99)
    assert head.width == 7 and torch.equal(head(features), features)
    assert not list(head.parameters())


@pytest.mark.parametrize("n_layers, shapes", [
    (1, [(5, 7)]), (2, [(2048, 7), (5, 2048)]), (4, [(2048, 7), (2048, 2048), (2048, 2048), (5, 2048)]),
])  # fmt: skip
def test_the_dino_head_is_linears_with_gelu_between_normalised(n_layers, shapes):
    head = build_head("dino", 7, n_layers, 5)
    linears = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    assert [tuple(layer.weight.shape) for layer in linears] == shapes and head.width == 5
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in head.modules())
    features = torch.randn(3, 7)
    expected = features
    for index, layer in enumerate(linears):
        expected = layer(F.gelu(expected) if index else expected)
    assert torch.allclose(head(features), expected / expected.norm(dim=1, keepdim=True), atol=1e-6)


def test_the_start_is_truncated_normal_without_bias():
    torch.manual_seed(0)
    linear = build_head("dino", 512, 1, 512).layers[0]
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.02) and not linear.bias.any()


@pytest.mark.parametrize("n_layers", [0, 1, 3])
def test_the_protoclip_head_has_n_hidden_layers_with_batch_norm_and_no_normalisation(n_layers):
    head = build_head("protoclip", 7, n_layers, 5).eval()
    kinds = ["Linear", "BatchNorm1d", "ReLU"] * n_layers + ["Linear"]
    assert [type(layer).__name__ for layer in head.layers] == kinds and head.width == 5
    features = torch.randn(3, 7)
    assert torch.equal(head(features), head.layers(features))
    assert (head(features).norm(dim=1) - 1).abs().min() > 1e-3


def test_an_unknown_head_is_a_sentence():
    with pytest.raises(UserError, match="'mlp' is none of dino, protoclip"):
        build_head("mlp", 7, 1, 5)


def test_prototypes_are_torchs_weight_norm_with_gain_one():
    layer = PrototypeLayer(6, 9)
    reference = nn.utils.parametrizations.weight_norm(nn.Linear(6, 9, bias=False))
    reference.parametrizations.weight.original0.data.fill_(1)
    reference.parametrizations.weight.original1.data.copy_(layer.directions)
    features = F.normalize(torch.randn(4, 6), dim=-1)
    assert torch.allclose(layer(features), reference(features), atol=1e-6)
    assert torch.allclose(layer(3 * features), layer(features), atol=1e-6)  # features are normalised here
    layer(features).square().sum().backward()
    reference(features).square().sum().backward()
    assert torch.allclose(layer.directions.grad, reference.parametrizations.weight.original1.grad, atol=1e-5)
    assert list(layer.state_dict()) == ["directions"]


def test_prototype_scores_are_not_rounded_by_autocast():
    """A cosine in bfloat16 is off by up to 1/500, and DINO divides it by 0.04."""
    layer, features = PrototypeLayer(64, 9), torch.randn(4, 64).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(features)
    assert found.dtype == torch.float32 and torch.equal(found, layer(features.float()))


def test_directions_are_copied_and_not_shared():
    student, teacher = PrototypeLayer(6, 9), PrototypeLayer(6, 9)
    teacher.copy_directions_from(student)
    assert torch.equal(teacher.directions, student.directions)
    student.directions.data.add_(1)
    assert not torch.equal(teacher.directions, student.directions)


@pytest.mark.parametrize("arguments, width", [
    ((512, 512, 0, 0, -1), 512), ((960, 512, 1, 0, -1), 512), ((960, 512, 0, 2, 64), 960), ((960, 512, 2, 1, 64), 64),
])  # fmt: skip
def test_the_joint_width(arguments, width):
    assert joint_dim(*arguments) == width


@pytest.mark.parametrize("arguments, sentence", [
    ((960, 512, 0, 0, 64), "the image tower gives 960 numbers and the text tower 512: give one of them a head"),
    ((960, 512, 1, 1, -1), "both towers have a head, so --joint-projection-dim decides their width: -1 is no width"),
    ((960, 512, 1, 1, 0), "0 is no width"),
    ((512, 512, -1, 0, 64), "a head of -1 layers"),
])  # fmt: skip
def test_widths_that_cannot_meet_are_sentences(arguments, sentence):
    with pytest.raises(UserError, match=sentence):
        joint_dim(*arguments)
