"""The grid encoders against open_clip's towers, with the same random weights."""

import open_clip
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet as OpenClipResNet

from clip_vl.models.clip.grid import GRID_ENCODERS, GridConfig, ModifiedResNet

PUBLISHED = {
    "RN50": (2048, 32), "RN101": (2048, 32), "RN50x4": (2560, 32), "RN50x16": (3072, 32), "RN-tiny": (512, 32)
}  # fmt: skip


def randomised(tower):
    """Every norm with its own statistics, so that no path is silent (bn3 starts at zero)."""
    torch.manual_seed(0)
    for module in tower.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.3, 0.6)
            torch.nn.init.normal_(module.bias, std=0.1)
            torch.nn.init.normal_(module.running_mean, std=0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return tower


def open_clip_tower(name):
    if name == "RN50":
        return open_clip.create_model("RN50", pretrained=None).visual
    grid = GRID_ENCODERS[name]  # the visual half alone: the text tower costs seconds to draw
    return OpenClipResNet(list(grid.layers), output_dim=64, heads=grid.width // 2, image_size=64, width=grid.width)


@pytest.mark.parametrize("name", ["RN50", "RN101", "RN50x4", "RN50x16"])
@torch.no_grad()
def test_grid_features_agree_with_open_clip_before_its_attention_pool(name):
    theirs = randomised(open_clip_tower(name)).eval()
    ours = ModifiedResNet(GRID_ENCODERS[name].layers, GRID_ENCODERS[name].width).eval()
    trunk = {key: value for key, value in theirs.state_dict().items() if not key.startswith("attnpool.")}
    ours.load_state_dict(trunk, strict=True)

    images = torch.randn(1, 3, 64, 96)
    expected = theirs.stem(images)
    for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
        expected = stage(expected)
    grid_features = ours(images)
    assert grid_features.shape == (1, GRID_ENCODERS[name].grid_dim, 2, 3)
    assert grid_features.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(grid_features, expected, atol=1e-5, rtol=1e-5)
    assert grid_features.abs().max() > 0.1


@pytest.mark.parametrize("name", PUBLISHED)
def test_grid_dims_and_strides_are_the_published_ones(name):
    assert (GRID_ENCODERS[name].grid_dim, GRID_ENCODERS[name].stride) == PUBLISHED[name]


def small(**options):
    torch.manual_seed(0)
    return randomised(ModifiedResNet((1, 1), 8, **options))


def buffers(tower):
    return {name: value.clone() for name, value in tower.named_buffers()}


def test_train_mode_norms_follow_the_batch_and_frozen_ones_do_not_move():
    images = torch.randn(2, 3, 32, 32)
    for mode, moves in (("train", True), ("frozen", False)):
        tower = small(bn_mode=mode).train()
        before = buffers(tower)
        tower(images)
        assert any(not torch.equal(before[name], value) for name, value in tower.named_buffers()) == moves
    assert not any(p.requires_grad for name, p in tower.named_parameters() if "bn" in name or "downsample.1" in name)
    assert tower.layer1[0].conv1.weight.requires_grad
    assert torch.equal(tower.train()(images), tower.eval()(images))


def test_checkpointing_changes_neither_gradients_nor_the_norms_statistics():
    images = torch.randn(2, 3, 32, 32)
    plain, frugal = small(), small(checkpoint_backbone=True)
    for tower in (plain, frugal):
        tower(images).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), frugal.parameters()):
        assert torch.equal(a.grad, b.grad), name
    after = buffers(frugal)
    for name, value in buffers(plain).items():
        assert torch.equal(value, after[name]), name
    assert frugal.bn1.num_batches_tracked == 1
    frugal(images)
    assert frugal.bn1.num_batches_tracked == 2


def test_weights_and_gradients_are_channels_last():
    tower = small()
    tower(torch.randn(2, 3, 32, 32)).sum().backward()
    for parameter in (p for p in tower.parameters() if p.dim() == 4):
        assert parameter.is_contiguous(memory_format=torch.channels_last)
        assert parameter.grad.stride() == parameter.stride()


def test_a_configuration_is_a_value():
    assert GridConfig((3, 4, 6, 3), 64) == GRID_ENCODERS["RN50"] != GRID_ENCODERS["RN101"]
