"""The student in training: pixels and tokens in, and the temperature of the distillation loss beside it."""

import math

import torch
from torch import nn

from clip_vl.models.distill.teachers import IMAGENET_MEAN, IMAGENET_STD
from clip_vl.models.towers.pixels import normalise


class Learner(nn.Module):
    """A student under the names of the published checkpoints: `model.` and `logit_scale_target`.

    learn_temperature: the distillation loss's temperature is trained; published runs left it at 0.07
    """

    def __init__(self, student, learn_temperature=False):
        super().__init__()
        self.model = student
        self.logit_scale_target = nn.Parameter(torch.tensor(math.log(1 / 0.07)), requires_grad=learn_temperature)
        for name, values in (("mean", IMAGENET_MEAN), ("std", IMAGENET_STD)):
            self.register_buffer(name, torch.tensor(values)[:, None, None], persistent=False)

    def forward(self, batch):
        """batch: images uint8 (B, 3, S, S) and tokens -> the student's outputs, with "kd_scale"."""
        tokens = batch["tokens"]
        outputs = self.model(self.pixels(batch["images"]), tokens["input_ids"], tokens["attention_mask"])
        return outputs | {"kd_scale": self.logit_scale_target.exp()}

    def pixels(self, images):
        return normalise(images, self.mean, self.std)

    def encode_image(self, images):
        """uint8 (B, 3, S, S) -> (B, D), L2-normalised."""
        return self.model.encode_image(self.pixels(images))

    def encode_text(self, tokens):
        """{"input_ids", "attention_mask"}, (B, L) each -> (B, D), L2-normalised."""
        return self.model.encode_text(tokens["input_ids"], tokens["attention_mask"])


def distill_groups(model, lr, weight_decay):
    """AdamW's groups: no decay of vectors, embeddings and the class token."""
    groups = {True: [], False: []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.dim() > 1 and "embeddings" not in name and not name.endswith("cls_token")
            groups[decays].append(parameter)
    return [{"params": groups[decays], "lr": lr, "weight_decay": weight_decay * decays} for decays in (True, False)]
