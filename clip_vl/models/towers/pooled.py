"""The one call of all image towers that come from another library."""

from torch import nn


class PooledTower(nn.Module):
    """Wraps a library's model; averages features that are still a grid over its cells."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, images):
        """images: float (B, 3, H, W), normalised -> (B, width)."""
        features = self.model(images)
        if isinstance(features, tuple):  # CoCa's: pooled, tokens
            features = features[0]
        return features.mean((2, 3)) if features.dim() == 4 else features
