"""Pre-training samples: a sentence, perhaps exchanged for another image's, and an answer if it is a question."""

import numpy as np
import torch

from clip_vl.datasets.lxmert.batches import load_images
from clip_vl.datasets.lxmert.wordpiece import pad_tokens
from clip_vl.engine.random import numpy_rng

EVALUATION_DRAWS = 2**31 - 1  # the "epoch" of every draw made for evaluation: the same samples every time


class PretrainDataset:
    """`dataset[(epoch, rows)]` is a batch; every draw is keyed by (seed, epoch, row).

    matched is 1 for a sentence of the image, 0 for a random one of another image (a share `exchange_rate`), -1
    where the image could not be read; answer is a class id drawn in proportion to the annotators' scores, or -1.
    Evaluation adds mask_uniform float32 (3, B, L), and region_uniform (3, B, K) for regions: its masks must not depend
    on the device or on who evaluates what.
    """

    def __init__(self, annotations, image_source, args, *, exchange_rate, evaluation=False):
        self.annotations, self.image_source, self.args = annotations, image_source, args
        self.exchange_rate, self.evaluation = exchange_rate, evaluation

    def __getitem__(self, key):
        epoch, rows = key
        epoch = EVALUATION_DRAWS if self.evaluation else epoch
        rngs = [numpy_rng(self.args.seed, "sample", epoch, row) for row in rows]
        sentences = [self._sentence(int(row), rng) for row, rng in zip(rows, rngs)]
        batch = load_images(self.image_source, self.annotations, rows, self.args)
        batch |= pad_tokens([self.annotations.tokens(row) for row in sentences])
        usable = batch.pop("usable")
        matched = torch.from_numpy((np.array(sentences) == rows).astype(np.int64))
        answer = torch.tensor([self._answer(int(row), rng) for row, rng in zip(rows, rngs)])
        batch["matched"] = matched.masked_fill(~usable, -1)
        batch["answer"] = answer.masked_fill(batch["matched"] != 1, -1)
        batch["maskable"] = batch["attention_mask"] * usable[:, None]  # no words are asked of an unread image
        if self.evaluation:
            length = batch["input_ids"].shape[1]
            uniform = np.stack([rng.random((3, length), dtype=np.float32) for rng in rngs], axis=1)
            batch["mask_uniform"] = torch.from_numpy(uniform)
            if "region_visible" in batch:  # drawn region by region: how many others of the batch have is no matter
                K = batch["region_visible"].shape[1]
                uniform = np.stack([rng.random((K, 3), dtype=np.float32) for rng in rngs])
                batch["region_uniform"] = torch.from_numpy(uniform).permute(2, 0, 1)
        return batch | {"rows": torch.from_numpy(np.asarray(rows)), "source": self._sources(rows)}

    def _sources(self, rows):
        return torch.from_numpy(np.asarray(self.annotations.source[rows]).astype(np.int64))

    def _sentence(self, row, rng):
        """The row whose sentence is shown: `row` itself, or now and then a random one of another image."""
        images = self.annotations.image_index
        if rng.random() >= self.exchange_rate or len(self.annotations.image_ids) < 2:
            return row
        while True:
            other = int(rng.integers(len(self.annotations)))
            if images[other] != images[row]:
                return other

    def _answer(self, row, rng):
        ids, scores = self.annotations.answers(row)
        if not len(ids):
            return -1
        share = np.cumsum(scores, dtype=np.float64)
        return int(ids[np.searchsorted(share, rng.random() * share[-1], side="right").clip(max=len(ids) - 1)])
