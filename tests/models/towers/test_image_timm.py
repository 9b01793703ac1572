"""timm's models without their classifiers, against timm's own with the same weights."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from clip_vl.engine.errors import UserError
from clip_vl.models.towers.image import build_image_tower


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto", "mobilenetv3_small_050",
                                  "efficientnet_b0"])  # fmt: skip
@torch.no_grad()
def test_the_classifier_on_our_features_gives_timms_logits(name, tmp_path):
    original = timm.create_model(name).eval()
    torch.nn.init.normal_(original.get_classifier().weight)
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    tower = build_image_tower("timm", name, weights=tmp_path / "model.safetensors").eval()
    images = torch.randn(1, 3, 224, 224)
    features = tower(images)
    assert features.shape == (1, tower.width)
    assert torch.allclose(original.get_classifier()(features), original(images), atol=1e-4, rtol=1e-4)


def test_statistics_are_timms():
    tower = build_image_tower("timm", "vit_tiny_patch16_224", resolution=112)
    assert (tower.resolution, tower.mean, tower.std) == (112, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (tower.interpolation, tower.short_side) == ("bicubic", 124)  # crop_pct .9
    tagged = build_image_tower("timm", "resnet18", tag="a1_in1k")
    assert (tagged.mean, tagged.short_side) == ((0.485, 0.456, 0.406), 235)  # crop_pct .95


@torch.no_grad()
def test_positions_of_a_file_are_resized_as_timm_does(tmp_path):
    original = timm.create_model("vit_tiny_patch16_224").eval()
    save_file(original.state_dict(), tmp_path / "model.safetensors")
    tower = build_image_tower(
        "timm", "vit_tiny_patch16_224", weights=tmp_path / "model.safetensors", resolution=96
    ).eval()
    original.set_input_size((96, 96))
    original.reset_classifier(0)
    images = torch.randn(1, 3, 96, 96)
    assert torch.allclose(tower(images), original(images), atol=1e-5)


def test_recomputing_is_timms():
    assert build_image_tower("timm", "vit_tiny_patch16_224", checkpointing=True).model.grad_checkpointing


@pytest.mark.parametrize("name, options, sentence", [
    ("resnet51", {}, "timm has no resnet51"),
    ("resnet50", {"tag": "zz"}, "timm has no resnet50.zz"),
    ("resnet18", {"pretrained": True, "tag": "a1_in1k"}, "a1_in1k are not on this machine: put .* at .*d63eafa0.pth"),
    ("inception_v3", {"resolution": 32}, "cannot take images of 32 x 32"),
    ("resnet18", {"quick_gelu": True}, "has its own activation"),
])  # fmt: skip
def test_what_cannot_work_is_a_sentence(name, options, sentence):
    with pytest.raises(UserError, match=sentence):
        build_image_tower("timm", name, **options)


def test_a_published_file_is_found(tmp_path):
    original = timm.create_model("resnet18")
    (tmp_path / "resnet18.a1_in1k").mkdir()
    save_file(original.state_dict(), tmp_path / "resnet18.a1_in1k" / "model.safetensors")
    tower = build_image_tower("timm", "resnet18", tag="a1_in1k", pretrained=True, cache_dir=tmp_path)
    assert torch.equal(tower.model.conv1.weight, original.conv1.weight)
