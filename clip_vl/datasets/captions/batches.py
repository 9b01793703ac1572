"""Batches of captioned images for a dual encoder: views, tokens, classes; or stored features of a frozen tower."""

import numpy as np
import torch

from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.engine.errors import DataError
from clip_vl.engine.random import numpy_rng

EVALUATION = -1  # the "epoch" of every draw made for evaluation: the same batches every time
MAX_REPLACEMENTS = 100  # rows drawn for one that cannot be read


class AlignDataset:
    """`dataset[(epoch, rows)]` is a batch; every draw is keyed by (seed, epoch, row).

    source:     a `CaptionSource`
    crop:       `TrainCrop` or `EvalCrop`; not used where `teacher` stands for the images
    tokenizer:  function of (list of B texts, NumPy generator) -> dict of int64 (B, L), run in the workers
    views:      2 for a second view of each image, drawn apart (BYOL)
    evaluation: always the first caption, and nothing replaced: `evaluation_loader` ends on a damaged image
    teacher:    `CachedFeatures` of rows or of texts, as `teacher_of` ("image" or "text") says: the batch has them
                instead of images or of tokens. A row whose features are not finite counts as damaged.
    A batch has
    images:     uint8 (B, 3, S, S), channels last in memory; images_2 the same, with two views
    tokens:     dict of int64 (B, L);  teacher_features: float32 (B, D)
    labels:     int64 (B,), -1 for none;  image_ids: int64 (B,)
    rows:       int64 (B,), the rows of the batch: another row replaces one with a damaged image
    captions:   list of B str
    damaged:    list of (name, sentence)
    """

    def __init__(self, source, crop, tokenizer, seed, *, views=1, evaluation=False, teacher=None, teacher_of="text"):
        if teacher_of not in ("image", "text"):
            raise ValueError(f"teacher_of is {teacher_of!r}; image or text")
        self.source, self.crop, self.tokenizer, self.seed = source, crop, tokenizer, seed
        self.views, self.evaluation, self.teacher = views, evaluation, teacher
        self.teacher_of = teacher_of if teacher is not None else None

    def __getitem__(self, key):
        epoch, rows = key
        epoch = EVALUATION if self.evaluation else epoch
        damaged = []
        samples = [self._sample(int(epoch), int(row), damaged) for row in rows]
        rows = [sample["row"] for sample in samples]
        texts = [self.source.text(sample["text"]) for sample in samples]
        batch = {
            "labels": torch.tensor([self.source.label(row) for row in rows]),
            "image_ids": torch.tensor([self.source.image_id(row) for row in rows]),
            "rows": torch.tensor(rows),
            "captions": texts,
            "damaged": damaged,
        }
        if self.teacher_of != "image":
            for view, name in enumerate(("images", "images_2")[: self.views]):
                batch[name] = _stack([sample["views"][view] for sample in samples])
        if self.teacher_of != "text":
            batch["tokens"] = self.tokenizer(texts, numpy_rng(self.seed, "texts", epoch, rows[0]))
        if self.teacher_of:
            batch["teacher_features"] = torch.from_numpy(np.stack([sample["teacher"] for sample in samples]))
        return batch

    def _sample(self, epoch, row, damaged):
        """The sample of a row, or of the first readable one of those drawn to replace it."""
        for candidate in self._candidates(epoch, row):
            try:
                return self._read(epoch, candidate)
            except DamagedImage as error:
                damaged.append((self.source.name(candidate), str(error)))
                if self.evaluation:
                    return self._blank(candidate)
        raise DataError(f"{MAX_REPLACEMENTS} images in a row cannot be read; the last: {damaged[-1][1]}")

    def _candidates(self, epoch, row):
        yield row
        rng = numpy_rng(self.seed, "replacement", epoch, row)
        yield from (int(other) for other in rng.integers(len(self.source), size=MAX_REPLACEMENTS))

    def _read(self, epoch, row):
        rng = numpy_rng(self.seed, "sample", epoch, row)
        index = 0 if self.evaluation else self.source.caption_index(row, rng)
        sample = {"row": row, "text": self.source.text_number(row, index)}
        if self.teacher_of != "image":
            data, name = self.source.read(row), self.source.name(row)
            sample["views"] = [self.crop(data, rng, name) for _ in range(self.views)]
        if self.teacher_of:
            sample["teacher"] = self._features(sample)
        return sample

    def _features(self, sample):
        number = sample["row"] if self.teacher_of == "image" else sample["text"]
        features = np.asarray(self.teacher[number], dtype=np.float32)
        if not np.isfinite(features).all():
            raise DamagedImage(self.source.name(sample["row"]), "has no features of the teacher: it could not be read")
        return features

    def _blank(self, row):
        sample = {"row": row, "text": self.source.text_number(row, 0)}
        if self.teacher_of != "image":
            S = self.crop.resolution
            sample["views"] = [torch.zeros(3, S, S, dtype=torch.uint8)] * self.views
        if self.teacher_of:
            sample["teacher"] = np.zeros(self.teacher.width, dtype=np.float32)
        return sample


def _stack(views):
    images = torch.empty((len(views), *views[0].shape), dtype=torch.uint8, memory_format=torch.channels_last)
    for image, view in zip(images, views):
        image.copy_(view)
    return images
