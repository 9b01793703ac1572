"""torchvision's models without their classifiers: what is left is what the classifier was given."""

import copy

import pytest
import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.models import get_model
from torchvision.models.vision_transformer import VisionTransformer

from clip_vl.engine.errors import UserError
from clip_vl.models.towers.image import build_image_tower
from clip_vl.models.towers.image_torchvision import _fit, classification_models, strip_classifier

WIDTHS = {  # the specification's, and for the rest the papers'
    "alexnet": 9216, "vgg11": 25088, "mobilenet_v3_large": 960, "resnet18": 512, "mnasnet0_5": 1280,
    "shufflenet_v2_x0_5": 1024, "efficientnet_b0": 1280, "regnet_y_400mf": 440, "vit_b_32": 768, "convnext_tiny": 768,
    "densenet121": 1024, "googlenet": 1024, "mobilenet_v2": 1280, "maxvit_t": 512, "squeezenet1_1": 512,
    "swin_t": 768, "swin_v2_t": 768, "inception_v3": 2048,
}  # fmt: skip
SIDES = {"maxvit_t": 224, "inception_v3": 80}


class EmptyOnMeta(TorchFunctionMode):
    """Weights without memory; unlike torch.device("meta") it leaves the arithmetic that sizes a RegNet alone."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        return function(*args, **kwargs | ({"device": "meta"} if function is torch.empty else {}))


def classify(model, head, features):
    """The rest of the original's classifier, from its first Linear or Conv2d on."""
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    first = next(i for i, layer in enumerate(layers) if isinstance(layer, (nn.Linear, nn.Conv2d)))
    return nn.Sequential(*layers[first:])(features)


@pytest.mark.parametrize("name", WIDTHS)
@torch.no_grad()
def test_the_classifier_on_our_features_gives_the_original_logits(name, monkeypatch):
    side = SIDES.get(name, 64)
    options = {"vit_b_32": {"image_size": side}, "googlenet": {"init_weights": False, "aux_logits": False},
               "inception_v3": {"init_weights": False, "aux_logits": False}}.get(name, {})  # fmt: skip
    original = get_model(name, weights=None, **options).eval()
    if name == "vit_b_32":
        nn.init.normal_(original.heads.head.weight)  # zero at the start
    monkeypatch.setattr(torchvision.models, "get_model", lambda *_, **__: copy.deepcopy(original))
    tower = build_image_tower("torchvision", name, resolution=side).eval()
    images = torch.randn(2, 3, side, side)
    features, logits = tower(images), original(images)
    assert features.shape == (2, WIDTHS[name]) and tower.width == WIDTHS[name] and logits.std() > 0
    head = list(original.children())[-1]
    if name == "squeezenet1_1":  # classified cell by cell, pooled afterwards: our features are the pooled cells
        assert torch.allclose(features, original.features(images).mean((2, 3)), atol=1e-5)
    else:
        assert torch.allclose(classify(original, head, features), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [name for name in classification_models() if name not in WIDTHS])
def test_every_other_model_is_stripped(name, monkeypatch):
    """Shapes alone: the width is what the removed layer was given, at the published resolution."""
    layers = []

    def create(*args, **kwargs):
        model = get_model(*args, **kwargs)
        head = list(model.children())[-1]
        layers.extend(head if isinstance(head, nn.Sequential) else [head])
        return model

    monkeypatch.setattr(torchvision.models, "get_model", create)
    with EmptyOnMeta():
        tower = build_image_tower("torchvision", name)
    removed = next(layer for layer in layers if isinstance(layer, (nn.Linear, nn.Conv2d)))
    assert tower.width == (removed.in_features if isinstance(removed, nn.Linear) else removed.in_channels)


def test_statistics_and_crop_are_those_of_the_weights():
    with EmptyOnMeta():
        v1, v2 = (build_image_tower("torchvision", "resnet50", tag=f"IMAGENET1K_V{n}") for n in (1, 2))
        inception = build_image_tower("torchvision", "inception_v3")
    assert (v1.resolution, v1.short_side, v1.interpolation, v1.crop) == (224, 256, "bilinear", "short_side")
    assert v2.short_side == 232 and v1.mean == (0.485, 0.456, 0.406) and v1.std == (0.229, 0.224, 0.225)
    assert (inception.resolution, inception.short_side) == (299, 342)


def test_a_published_file_is_found_and_loaded_without_its_classifier(tmp_path):
    original = get_model("resnet18", weights=None)
    state = {k: v for k, v in original.state_dict().items() if not k.endswith("num_batches_tracked")}  # as published
    torch.save(state, tmp_path / "resnet18-f37072fd.pth")
    tower = build_image_tower("torchvision", "resnet18", pretrained=True, cache_dir=tmp_path)
    assert torch.equal(tower.model.layer4[1].conv2.weight, original.layer4[1].conv2.weight)
    with pytest.raises(UserError, match=rf"put https.* at {tmp_path}/resnet34-b627a593.pth"):
        build_image_tower("torchvision", "resnet34", pretrained=True, cache_dir=tmp_path)
    with pytest.raises(UserError, match=r"\(image tower mobilenet_v2\) does not fit"):
        build_image_tower("torchvision", "mobilenet_v2", weights=tmp_path / "resnet18-f37072fd.pth")


@pytest.mark.parametrize("name", ["densenet121", "mnasnet0_5", "googlenet"])
@torch.no_grad()
def test_files_with_old_names_versions_and_auxiliary_classifiers_load(name, tmp_path):
    options = {"init_weights": False, "transform_input": True} if name == "googlenet" else {}
    original = get_model(name, weights=None, **options).eval()
    state = dict(original.state_dict())
    if name == "densenet121":
        for old, new in (("norm.1", "norm1"), ("norm.2", "norm2"), ("conv.1", "conv1"), ("conv.2", "conv2")):
            state = {k.replace(new, old) if "denselayer" in k else k: v for k, v in state.items()}
        assert "features.denseblock1.denselayer1.norm.1.weight" in state
    torch.save(state, tmp_path / "file.pth")
    tower = build_image_tower("torchvision", name, weights=tmp_path / "file.pth").eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.allclose(list(original.children())[-1].eval()(tower(images)), original(images), atol=1e-5)


def test_a_transformers_positions_are_resized():
    kwargs = {"patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 16}
    small, large = (VisionTransformer(image_size=side, **kwargs) for side in (32, 64))
    fitted = _fit(dict(large.state_dict()), small, 32)
    assert fitted["encoder.pos_embedding"].shape == small.encoder.pos_embedding.shape


def test_a_model_without_a_classifier_is_refused():
    with pytest.raises(UserError, match="does not end in a classifier: its last part, 1, is a BatchNorm2d"):
        strip_classifier(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))


@pytest.mark.parametrize("name, options, sentence", [
    ("resnet51", {}, "none of torchvision's \\d+ classification models; the nearest names: resnet50"),
    ("resnet50", {"tag": "V3"}, "no published weights tagged 'V3'; its tags: IMAGENET1K_V1, IMAGENET1K_V2"),
    ("maxvit_t", {"resolution": 128}, "maxvit_t cannot take images of 128 x 128"),
    ("vit_b_16", {"resolution": 100}, "vit_b_16 cannot take images of 100 x 100"),
    ("inception_v3", {"resolution": 32}, "inception_v3 cannot take images of 32 x 32"),
    ("resnet18", {"checkpointing": True}, "cannot recompute"),
    ("resnet18", {"quick_gelu": True}, "has its own activation"),
])  # fmt: skip
def test_what_cannot_work_is_a_sentence(name, options, sentence):
    with EmptyOnMeta(), pytest.raises(UserError, match=sentence):
        build_image_tower("torchvision", name, **options)
