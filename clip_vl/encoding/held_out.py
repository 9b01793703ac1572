"""Features of held-out pairs of images and texts, by a dual encoder that is still being trained."""

import numpy as np
import torch

from clip_vl.datasets.captions.source import NumberedPairs
from clip_vl.encoding.encode import ImagesOf, TextsOf


class HeldOutPairs(NumberedPairs):
    """images, texts = HeldOutPairs(source, crop, tokenizer, encoder).encode(model)

    teacher: {"image" or "text": `CachedFeatures`} that stand for what a frozen tower would see
    """

    def __init__(self, source, crop, tokenizer, encoder, teacher=None):
        super().__init__(source)
        self.encoder, self.teacher = encoder, teacher or {}
        self.datasets = {"image": ImagesOf(source, crop), "text": TextsOf(source, tokenizer)}

    def encode(self, model):
        """(image features (N, D), text features (M, D)) by all processes. Raises DataError at a damaged image.

        model: has encode_image and encode_text
        """
        model.eval()
        images = self._encode("image", self.rows, lambda batch: model.encode_image(batch["images"]))
        return images, self._encode("text", self.numbers, lambda batch: model.encode_text(batch["tokens"]))

    def _encode(self, side, numbers, encode):
        teacher = self.teacher.get(side)
        dataset = self.datasets[side] if teacher is None else FeaturesOf(teacher, self.source)
        return self.encoder.gathered(dataset, numbers, encode)


class FeaturesOf:
    """`features[(_, numbers)]`: kept features (B, D) instead of images and of tokens; damaged as of `ImagesOf`."""

    def __init__(self, features, source):
        self.features, self.source = features, source

    def __getitem__(self, key):
        features = torch.from_numpy(np.asarray(self.features[key[1]], dtype=np.float32))
        bad = key[1][~features.isfinite().all(1).numpy()]  # images alone: every text can be read
        damaged = [(int(row), f"{self.source.name(int(row))} could not be read") for row in bad]
        return {"images": features, "tokens": features, "damaged": damaged}
