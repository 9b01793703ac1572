"""Classifiers on distilled encoders: images, with a learning rate per layer, and the texts of GLUE."""

import re

import torch
from torch import nn

from clip_vl.models.distill.blocks import EPS
from clip_vl.models.distill.student import init_linear
from clip_vl.models.dropout import Dropout
from clip_vl.models.fused.bert import BertPooler


class ImageClassifier(nn.Module):
    """An `ImageEncoder`, the mean of its patch tokens (or its class token), LayerNorm, and a linear layer.

    pooling: "patches" (published) or "cls";  frozen: linear evaluation, the encoder is not trained
    """

    def __init__(self, encoder, classes, pooling="patches", frozen=False):
        super().__init__()
        self.encoder, self.pooling, self.frozen = encoder, pooling, frozen
        self.head_norm, self.head = nn.LayerNorm(encoder.spec.width, eps=EPS), nn.Linear(encoder.spec.width, classes)
        init_linear(self.head)
        if frozen:
            encoder.requires_grad_(False)

    def forward(self, images):
        """images: (B, 3, H, W), normalised -> class logits (B, C)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            tokens = self.encoder(images)
            pooled = tokens[:, 0] if self.pooling == "cls" else tokens[:, 1:].mean(1)
        return self.head(self.head_norm(pooled))


class TextClassifier(nn.Module):
    """A `TextEncoder`, BERT's pooler on its first token, dropout, and a linear layer."""

    def __init__(self, encoder, classes, dropout=0.1):
        super().__init__()
        self.encoder, self.pooler = encoder, BertPooler(encoder.config, tanh=True)
        self.dropout, self.head = Dropout(dropout), nn.Linear(encoder.config.hidden_size, classes)
        init_linear(self.head, truncated=False)

    def forward(self, input_ids, attention_mask, segment_ids=None):
        """Token ids, attention_mask (1 keeps, 0 pads) and segment ids (B, L) -> logits (B, C), or scores (B,)."""
        tokens = self.encoder(input_ids, attention_mask, segment_ids)
        return self.head(self.dropout(self.pooler(tokens)))


def layer_of(name, blocks):
    """Layer number of a classifier's parameter: 0 the embeddings, i the block i - 1, blocks + 1 norm and head."""
    if name.startswith("head"):
        return blocks + 1
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    return int(block[1]) + 1 if block else 0


def decayed_groups(model, lr, decay, weight_decay):
    """AdamW's groups, one per layer: the learning rate lr * decay ** (layers above), the same weight decay for all."""
    blocks = len(model.encoder.blocks)
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(layer_of(name, blocks), []).append(parameter)
    return [
        {"params": parameters, "lr": lr * decay ** (blocks + 1 - layer), "weight_decay": weight_decay}
        for layer, parameters in sorted(groups.items())
    ]
