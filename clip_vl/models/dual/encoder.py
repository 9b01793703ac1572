"""A dual encoder: an image tower and a text tower, each with a head, that meet in one space.

model = build_dual_encoder(spec)                      # models/dual/build.py
images = model.encode_image(pixels)                   # (B, D), L2-normalised
texts = model.encode(["a cat", "a dog"])              # (2, D), NumPy, L2-normalised
similarity = images @ texts.T
"""

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.models.towers.pixels import normalise


class DualEncoder(nn.Module):
    """What a loss needs of a batch of pairs comes out of `forward`, as a dict of tensors.

    image_tower, text_tower: modules as models/image_towers.py and models/text_towers.py make them; `CachedTower`
                             instead of one whose features are read from a cache
    image_head, text_head:   modules over the towers' features
    extras:                  {name: module or parameter} a loss adds: logit_scale, logit_bias, prototypes, projections

    Parameters that no output depends on would stall distributed training, so each loss brings its own.
    """

    def __init__(self, image_tower, text_tower, image_head, text_head, **extras):
        super().__init__()
        self.image_tower, self.text_tower = image_tower, text_tower
        self.image_head, self.text_head = image_head, text_head
        self.two_texts = False  # whether `forward` encodes texts twice, for SimCSE
        for name, extra in extras.items():
            setattr(self, name, extra)
        # Whether each tower has OpenAI's GELU: shapes cannot tell, so checkpoints carry it, and towers are built by it.
        quick = [getattr(tower, "activation", None) == "quick_gelu" for tower in (image_tower, text_tower)]
        self.register_buffer("quick_gelu", torch.tensor(quick, dtype=torch.uint8))
        for name in ("mean", "std"):
            pixels = torch.tensor(getattr(image_tower, name, (0.0, 0.0, 0.0))).view(3, 1, 1)
            self.register_buffer(name, pixels, persistent=False)

    @property
    def tokenizer(self):
        """list of str -> dict of token tensors, for the loader's workers; None where the text tower is a cache."""
        return getattr(self.text_tower, "tokenizer", None)

    def image_output(self, images):
        """What the image side's head gives, (B, D), normalised only where the head does it."""
        return self.image_head(self.image_tower(normalise(images, self.mean, self.std)))

    def text_output(self, tokens):
        """The same of the text side."""
        return self.text_head(self.text_tower(tokens))

    def encode_image(self, images, projection=True):
        """images uint8 or normalised (B, 3, H, W) -> (B, D), L2-normalised, or without projection the tower's."""
        if not projection:
            return self.image_tower(normalise(images, self.mean, self.std))
        return F.normalize(self.image_output(images).float(), dim=-1)

    def encode_text(self, tokens, projection=True):
        """tokens as the tokenizer gives them, or a list of str -> (B, D), L2-normalised; or the tower's (B, width)."""
        if not isinstance(tokens, dict | torch.Tensor):
            tokens = {name: ids.to(self.mean.device) for name, ids in self.tokenizer(list(tokens)).items()}
        return F.normalize(self.text_output(tokens).float(), dim=-1) if projection else self.text_tower(tokens)

    @torch.no_grad()
    def encode(self, sentences, batch_size=32):
        """Features of many sentences, NumPy float32 (N, D), as sentence-transformers' `encode`: always projected.

        Sentences of like length share a batch; the order is that of `sentences`.
        """
        order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
        parts = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
        features = [self.encode_text([sentences[i] for i in part]).float().cpu().numpy() for part in parts]
        return np.concatenate(features)[np.argsort(order)] if features else np.zeros((0, 0), np.float32)

    def forward(self, batch):
        """batch: images (B, 3, H, W) and tokens, of which one may be teacher_features (B, width) of a `CachedTower`;
        images_2, if any, are second views.

        returns: image_features, text_features (B, D) as the heads give them; image_features_2, text_features_2 of
                 second views; logit_scale; SigLIP's logit_bias; with prototypes image_scores, text_scores (B, K);
                 ProtoCLIP's image_projected, text_projected (B, P) and prototype_scale
        """
        images, texts = (
            batch["teacher_features" if isinstance(tower, CachedTower) else name]
            for tower, name in ((self.image_tower, "images"), (self.text_tower, "tokens"))
        )
        outputs = {"image_features": self.image_output(images), "text_features": self.text_output(texts)}
        if "images_2" in batch:
            outputs["image_features_2"] = self.image_output(batch["images_2"])
        if self.two_texts:
            outputs["text_features_2"] = self.text_output(texts)  # another dropout mask
        for name in ("logit_scale", "prototype_scale"):
            if hasattr(self, name):
                outputs[name] = getattr(self, name).exp()
        if hasattr(self, "logit_bias"):
            outputs["logit_bias"] = self.logit_bias * 1  # an output, which distributed training looks at
        if hasattr(self, "prototypes"):
            outputs |= {f"{side}_scores": self.prototypes(outputs[f"{side}_features"]) for side in ("image", "text")}
        if hasattr(self, "image_projection"):
            for side in ("image", "text"):
                outputs[f"{side}_projected"] = getattr(self, f"{side}_projection")(outputs[f"{side}_features"])
        return outputs

    @torch.no_grad()
    def clamp_scales(self):
        """Keep temperatures in [0, ln 100], after every update (arXiv:2103.00020, section 2.5)."""
        for name in ("logit_scale", "prototype_scale"):
            if hasattr(self, name):
                getattr(self, name).clamp_(0.0, np.log(100.0))


class CachedTower(nn.Module):
    """Stands for a frozen tower whose features come from a cache; has the tower's width and temperature."""

    tokenizer = None

    def __init__(self, width, initial_logit_scale=None):
        super().__init__()
        self.width, self.initial_logit_scale = width, initial_logit_scale

    def forward(self, features):
        return features.float()
