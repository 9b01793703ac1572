"""The one call for all image towers."""

import pytest
import torch

from clip_vl.engine.errors import UserError
from clip_vl.models.towers.image import build_image_tower
from clip_vl.models.towers.pixels import measure_width
from clip_vl.models.towers.pooled import PooledTower


def test_an_unknown_builder_is_answered_with_the_known_ones():
    with pytest.raises(UserError, match="image builder 'torchhub' is none of openclip, torchvision, timm, clip"):
        build_image_tower("torchhub", "dino")


@pytest.mark.parametrize("builder, name, meant", [
    ("clip", "RN_50", "RN50"), ("clip", "RN-tinny", "RN-tiny"), ("openclip", "ViT-B-23", "ViT-B-32"),
    ("torchvision", "mobilnet_v3_large", "mobilenet_v3_large"),
    ("timm", "vit_smal_patch16_224", "vit_small_patch16_224"),
])  # fmt: skip
def test_an_unknown_name_is_answered_with_the_nearest_one(builder, name, meant):
    with pytest.raises(UserError, match=f"{name}.*{meant}"):
        build_image_tower(builder, name)


class Tokens(torch.nn.Module):
    def forward(self, images):
        return images, None


def test_grids_are_averaged_and_cocas_tokens_left_out():
    grid = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert PooledTower(torch.nn.Identity())(grid).tolist() == [[1.5, 5.5]]
    assert PooledTower(Tokens())(torch.ones(1, 3)).tolist() == [[1.0, 1.0, 1.0]]


def test_measuring_leaves_mode_and_statistics_alone():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.BatchNorm2d(5), torch.nn.AdaptiveAvgPool2d(1))
    model = torch.nn.Sequential(model, torch.nn.Flatten())
    assert measure_width(model, 8, "it") == 5
    assert model.training and model[0][1].num_batches_tracked == 0


def test_features_of_another_shape_are_refused():
    with pytest.raises(UserError, match=r"it gives features of shape \(1, 3, 8, 8\), where \(B, width\) is needed"):
        measure_width(torch.nn.Identity(), 8, "it")
