"""CLIP's image towers (arXiv:2103.00020, section 2.4) as grid encoders: no pooling, no text tower.

The ResNets are here, the vision transformers in vit.py.
"""

from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.vit import VisionTransformer, ViTConfig

EXPANSION = 4  # output channels of a bottleneck per inner channel


@dataclass(frozen=True)
class GridConfig:
    """A ResNet's shape: blocks per stage and stem width. Each stage but the first halves the grid and doubles C."""

    layers: tuple
    width: int

    @property
    def grid_dim(self):
        """Channels C of the grid features."""
        return self.width * EXPANSION * 2 ** (len(self.layers) - 1)

    @property
    def stride(self):
        """Pixels per grid cell along one side."""
        return 4 * 2 ** (len(self.layers) - 1)


GRID_ENCODERS = {
    "RN50": GridConfig((3, 4, 6, 3), 64),
    "RN101": GridConfig((3, 4, 23, 3), 64),
    "RN50x4": GridConfig((4, 6, 10, 6), 80),
    "RN50x16": GridConfig((6, 8, 18, 8), 96),
    "RN-tiny": GridConfig((1, 1, 1, 1), 16),  # ours, for small images
    "RN-micro": GridConfig((1, 1, 1), 16),  # ours, for smaller ones: 16 pixels a cell
    "ViT-B/32": ViTConfig(12, 768, 32, 7),
    "ViT-B/16": ViTConfig(12, 768, 16, 14),
    "ViT-L/14": ViTConfig(24, 1024, 14, 16),
}


def build_grid_encoder(grid, bn_mode="train", checkpoint_backbone=False):
    """The tower of a GridConfig or ViTConfig; a transformer has no batch norm, so bn_mode "frozen" is refused there."""
    if isinstance(grid, GridConfig):
        return ModifiedResNet(grid.layers, grid.width, bn_mode, checkpoint_backbone)
    if bn_mode != "train":
        raise UserError(f"--bn_mode {bn_mode} is for ResNets: a vision transformer has no BatchNorm; drop the flag")
    return VisionTransformer(grid, checkpoint_backbone)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a residual; strides are average pools, so that nothing aliases."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        out_channels = channels * EXPANSION
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.downsample = None
        if stride > 1 or in_channels != out_channels:
            convolution = nn.Conv2d(in_channels, out_channels, 1, bias=False)
            self.downsample = nn.Sequential(convolution, nn.BatchNorm2d(out_channels))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(self._shrink(y)))
        y += x if self.downsample is None else self.downsample(self._shrink(x))
        return F.relu(y, inplace=True)

    def _shrink(self, x):
        return F.avg_pool2d(x, self.stride) if self.stride > 1 else x


class ModifiedResNet(nn.Module):
    """Three-convolution stem and bottleneck stages; parameter names as in CLIP's `visual`.

    bn_mode "train": batch statistics in training, as published; "frozen": running statistics always, and the
    norms' weights are frozen. checkpoint_backbone keeps only each stage's input and recomputes the rest.
    """

    def __init__(self, layers, width, bn_mode="train", checkpoint_backbone=False):
        super().__init__()
        self.config = GridConfig(tuple(layers), width)
        self.bn_mode, self.checkpoint_backbone = bn_mode, checkpoint_backbone
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        in_channels = width
        for index, blocks in enumerate(layers):
            channels = width * 2**index
            self.add_module(f"layer{index + 1}", _stage(in_channels, channels, blocks, stride=1 if index == 0 else 2))
            in_channels = channels * EXPANSION
        self._initialise()
        self.to(memory_format=torch.channels_last)
        if bn_mode == "frozen":
            for norm in _norms(self):
                norm.requires_grad_(False)
        self.train()

    def forward(self, images):
        """images: float (N, 3, H, W), normalised -> grid_features (N, C, H / stride, W / stride), after the ReLU."""
        x = images
        for part in (self._stem, *self.stages):
            if self.checkpoint_backbone:
                x = checkpoint(part, x, use_reentrant=False, preserve_rng_state=False, context_fn=self._passes)
            else:
                x = part(x)
        return x

    @property
    def stages(self):
        return [getattr(self, f"layer{index + 1}") for index in range(len(self.config.layers))]

    def train(self, mode=True):
        """Frozen norms stay in evaluation whatever the mode of the rest."""
        super().train(mode)
        if self.bn_mode == "frozen":
            for norm in _norms(self):
                norm.eval()
        return self

    def _stem(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.relu(self.bn2(self.conv2(x)), inplace=True)
        x = F.relu(self.bn3(self.conv3(x)), inplace=True)
        return F.avg_pool2d(x, 2)

    def _passes(self):
        """The contexts of a checkpointed part's two passes: only the first one may move the running statistics."""
        return nullcontext(), _statistics_at_rest(self)

    def _initialise(self):
        """He's normal for the convolutions; CLIP's zero weight of each block's last norm trains more slowly here."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _stage(in_channels, channels, blocks, stride):
    first = Bottleneck(in_channels, channels, stride)
    return nn.Sequential(first, *(Bottleneck(channels * EXPANSION, channels, 1) for _ in range(blocks - 1)))


def _norms(module):
    return [norm for norm in module.modules() if isinstance(norm, nn.BatchNorm2d)]


@contextmanager
def _statistics_at_rest(module):
    """Normalise by batch statistics as before, without counting the batch a second time."""
    kept = [(norm, norm.momentum, norm.num_batches_tracked) for norm in _norms(module)]
    for norm, _, _ in kept:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, momentum, batches in kept:
            norm.momentum, norm.num_batches_tracked = momentum, batches
