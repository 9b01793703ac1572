"""Soft-target cross entropy and the mixing of images."""

import numpy as np
import pytest
import torch

from clip_vl.losses.distill.soft_targets import mix_images, smooth_one_hot, soft_target_loss


def wave(shape, a, b, scale):
    return torch.from_numpy((scale * np.sin(a + b * np.arange(np.prod(shape)))).astype(np.float32).reshape(shape))


def test_the_loss_sums_over_classes_and_the_published_form_averages():
    """Golden values of the published code (mixup_loss)."""
    logits, targets = wave((3, 5), 0.3, 1.1, 3), wave((3, 5), 1.2, 0.9, 2).softmax(1)
    assert soft_target_loss(logits, targets).item() == pytest.approx(2.022867, rel=1e-6)
    assert soft_target_loss(logits, targets, mean_over_classes=True).item() == pytest.approx(0.4045735, rel=1e-6)


def test_one_thousand_classes_make_the_published_loss_a_thousand_times_smaller():
    logits, targets = torch.randn(4, 1000), torch.randn(4, 1000).softmax(1)
    whole, published = soft_target_loss(logits, targets), soft_target_loss(logits, targets, mean_over_classes=True)
    assert (whole / published).item() == pytest.approx(1000, rel=1e-5)
    torch.testing.assert_close(whole, torch.nn.functional.cross_entropy(logits, targets))


@pytest.mark.parametrize("options", [{"cutmix": 0}, {"mixup": 0}, {}])
def test_the_targets_say_what_share_of_each_image_is_there(options):
    """Each image is constant, its value its label: the mean of a mixed image is its targets' mean label."""
    labels = torch.arange(6)
    for seed in range(8):
        images = labels.float()[:, None, None, None].expand(6, 3, 8, 8).clone()
        mixed, targets = mix_images(images, labels, 6, np.random.default_rng(seed), smoothing=0.0, **options)
        torch.testing.assert_close(mixed.mean((1, 2, 3)), targets @ labels.float(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(targets.sum(1), torch.ones(6))


def test_smoothing_is_spread_over_all_classes():
    torch.testing.assert_close(smooth_one_hot(torch.tensor([1]), 4, 0.1), torch.tensor([[0.025, 0.925, 0.025, 0.025]]))
