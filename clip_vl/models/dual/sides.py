"""One side of a dual encoder on its own, for what needs no more: image features, text features, and their digest."""

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.models.dual.build import build_tower, frozen_digest, open_dual_encoder
from clip_vl.models.towers.pixels import normalise


class ImageSide:
    """tower, head: modules in evaluation mode, on one device."""

    def __init__(self, tower, head):
        self.tower, self.head, self.digest = tower, head, frozen_digest(tower)
        self.head_digest = frozen_digest(head)
        self.device = next(tower.parameters()).device
        self.pixels = [torch.tensor(values, device=self.device).view(3, 1, 1) for values in (tower.mean, tower.std)]

    def features(self, images):
        """uint8 (B, 3, H, W) -> what the tower gives, (B, width), neither projected nor normalised."""
        return self.tower(normalise(images, *self.pixels))

    @torch.no_grad()
    def project(self, features, block=8192):
        """Features (N, width) of the tower -> (N, D) in the joint space, L2-normalised, on the host."""
        parts = [self.head(part.to(self.device)).float() for part in features.split(block)]
        return torch.cat([F.normalize(part, dim=1).cpu() for part in parts])


class TextSide:
    """The text half of a dual encoder in evaluation mode."""

    def __init__(self, model):
        self.model, self.tokenizer = model, model.tokenizer
        self.digest = f"{frozen_digest(model.text_tower)} {frozen_digest(model.text_head)}"

    def features(self, tokens):
        """Tokens -> (B, D) in the joint space, not normalised unless the head does it."""
        return self.model.text_output(tokens)


def open_sides(spec, device):
    """(ImageSide, TextSide) of the dual encoder of a `DualSpec`."""
    model = open_dual_encoder(spec, device)
    return ImageSide(model.image_tower, model.image_head), TextSide(model)


def open_image_side(spec, device):
    """The image side of the checkpoint to load, or else the image tower of a `DualSpec`, without a head."""
    if spec.load:
        return open_sides(spec, device)[0]
    return ImageSide(build_tower("image", spec).to(device, memory_format=torch.channels_last).eval(), nn.Identity())
