"""Projection heads between the towers and the loss, and the prototypes of the losses that compare assignments."""

from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine.errors import UserError

HIDDEN = 2048


def build_head(kind, in_dim, n_layers, out_dim, hidden_dim=HIDDEN):
    """A head (B, in_dim) -> (B, width).

    kind "dino": n_layers 0 the identity, not normalised; 1 linear; more an MLP with GELU; 1 and more end in an L2
         normalisation (DINO, arXiv:2104.14294, without BatchNorm)
    kind "protoclip": n_layers hidden layers (Linear, BatchNorm, ReLU), then a Linear; 0 is that Linear alone; not
         normalised here (ProtoCLIP, arXiv:2206.10996)
    """
    if kind == "protoclip":
        return ProtoClipHead(in_dim, n_layers, out_dim, hidden_dim)
    if kind != "dino":
        raise UserError(f"projection head {kind!r} is none of dino, protoclip")
    return ProjectionHead(in_dim, n_layers, out_dim, hidden_dim) if n_layers else IdentityHead(in_dim)


class IdentityHead(nn.Identity):
    """No head; has a `width` as the others do."""

    def __init__(self, width):
        super().__init__()
        self.width = width


class ProjectionHead(nn.Module):
    """n linear layers with GELU between them and hidden_dim numbers inside, then an L2 normalisation."""

    def __init__(self, in_dim, n_layers, out_dim, hidden_dim=HIDDEN):
        super().__init__()
        self.width = out_dim
        sizes = [in_dim, *[hidden_dim] * (n_layers - 1), out_dim]
        self.layers = _mlp(sizes, nn.GELU)
        _initialise(self)

    def forward(self, features):
        """features: (B, in_dim) -> (B, width), L2-normalised."""
        return F.normalize(self.layers(features), dim=-1)


class ProtoClipHead(nn.Module):
    """n + 1 linear layers with BatchNorm and ReLU between them and hidden_dim numbers inside."""

    def __init__(self, in_dim, n_layers, out_dim, hidden_dim=HIDDEN):
        super().__init__()
        self.width = out_dim
        sizes = [in_dim, *[hidden_dim] * n_layers, out_dim]
        self.layers = _mlp(sizes, nn.ReLU, norm=nn.BatchNorm1d)

    def forward(self, features):
        """features: (B, in_dim) -> (B, width)."""
        return self.layers(features)


def _mlp(sizes, activation, norm=None):
    """Linear layers of these sizes; between them the norm, if any, and the activation."""
    layers = []
    for rows, columns in pairwise(sizes):
        between = [activation()] if norm is None else [norm(rows), activation()]
        layers += [*(between if layers else []), nn.Linear(rows, columns)]
    return nn.Sequential(*layers)


def _initialise(head):
    for layer in head.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)


class PrototypeLayer(nn.Module):
    """Cosines of features with K trainable directions: a weight-normalised linear layer of gain one, without bias."""

    def __init__(self, in_dim, num_prototypes):
        super().__init__()
        self.directions = nn.Parameter(torch.empty(num_prototypes, in_dim))
        nn.init.trunc_normal_(self.directions, std=0.02)

    def forward(self, features):
        """features: (B, D), of any length -> (B, K), cosines; always fp32, because temperatures divide them."""
        with torch.autocast(features.device.type, enabled=False):
            return F.linear(F.normalize(features.to(self.directions), dim=-1), F.normalize(self.directions, dim=-1))

    @torch.no_grad()
    def copy_directions_from(self, other):
        """Take another layer's prototypes (student to teacher); K and D must match."""
        self.directions.copy_(other.directions)


def joint_dim(image_width, text_width, image_layers, text_layers, joint_projection_dim):
    """The width D in which images and texts meet; heads of zero layers leave a tower's width as it is.

    A tower without a head dictates D, two heads take joint_projection_dim. Raises UserError where no D is possible.
    """
    if image_layers < 0 or text_layers < 0:
        raise UserError(f"a head of {min(image_layers, text_layers)} layers: 0 is none, 1 is linear, 2 and more an MLP")
    if image_layers and text_layers:
        if joint_projection_dim <= 0:
            raise UserError(
                f"both towers have a head, so --joint-projection-dim decides their width: {joint_projection_dim} is "
                "no width; say 512, for instance"
            )
        return joint_projection_dim
    if not image_layers and not text_layers and image_width != text_width:
        raise UserError(
            f"the image tower gives {image_width} numbers and the text tower {text_width}: give one of them a head "
            "(--image-head-n-layers 1 or --text-head-n-layers 1)"
        )
    return text_width if image_layers else image_width
