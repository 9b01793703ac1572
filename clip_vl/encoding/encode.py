"""A frozen model over a dataset: each image or text is encoded once, by all processes together.

    encoder = Encoder(device, batch_size=64, cache_root="data/cache")
    features = encoder.cached(images, rows, encode, source=source.digest, model=digest)   # kept on disk, (N, D)
    features = encoder.gathered(images, rows, encode)                                     # of a model in training
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.loader import build_loader, evaluation_loader, to_device
from clip_vl.encoding.cache import cached_features
from clip_vl.engine import dist
from clip_vl.engine.errors import Interrupted

BLOCK = 1024  # items that one process encodes at a time, and that a killed process can lose


@dataclass(frozen=True)
class Encoder:
    """How a model runs over a dataset.

    dtype:      of autocast; None for float32
    cache_root: folder of the features that are kept
    """

    device: torch.device
    batch_size: int = 64
    num_workers: int = 0
    dtype: torch.dtype | None = None
    cache_root: str | Path = "data/cache"
    tqdm: bool = False

    def autocast(self):
        return torch.autocast(self.device.type, self.dtype or torch.bfloat16, enabled=self.dtype is not None)

    def cached(self, dataset, numbers, encode, *, source, model, dtype="float32", block=BLOCK, skip_damaged=False,
               stop=None):  # fmt: skip
        """Features (N, D) of the items `numbers` (N,) of a dataset, `CachedFeatures`; computed where they are not kept.

        encode:       batch on the device -> (B, D)
        source:       digest of what the dataset reads
        model:        text that names all else that the features depend on: weights, preprocessing
        skip_damaged: an image that cannot be read has features of NaN, instead of being a DataError
        stop:         true when a signal asks to stop: then Interrupted
        """
        numbers = np.asarray(numbers)
        chosen = hashlib.sha256(np.ascontiguousarray(numbers, np.int64)).hexdigest()

        def encode_block(positions):
            return self._encode(dataset, numbers[positions], encode, skip_damaged, stop)

        Path(self.cache_root).mkdir(parents=True, exist_ok=True)
        described = f"{model} {self.dtype} items {chosen}"
        return cached_features(source, described, len(numbers), encode_block, self.cache_root, dtype=dtype, block=block)

    @torch.no_grad()
    def gathered(self, dataset, numbers, encode):
        """Features (N, D) of the items `numbers` (N,) on all processes, float32 on the host; nothing is kept.

        Raises DataError at a damaged image.
        """
        numbers = np.asarray(numbers)
        mine = shares(np.arange(len(numbers)), self.batch_size, dist.rank(), dist.world_size())
        batches = evaluation_loader(dataset, [numbers[part] for part in mine], self.device, self)
        return collect(encode, zip(mine, batches), self.autocast())

    @torch.no_grad()
    def _encode(self, dataset, numbers, encode, skip_damaged, stop):
        """Features (n, D) of some items by this process alone, float32 on the host."""
        parts, features = shares(numbers, self.batch_size, 0, 1), []
        if skip_damaged:
            loader = build_loader(dataset, 0, parts, self, self.device)
        else:
            loader = evaluation_loader(dataset, parts, self.device, self)
        for batch in loader:
            stop_if_asked(stop)
            with self.autocast():
                part = encode(to_device(batch, self.device)).float().cpu()
            for row, _ in batch.get("damaged", ()):
                part[batch["rows"] == row] = torch.nan
            features.append(part)
        return torch.cat(features)


class ImagesOf:
    """`images[(_, rows)]`: images uint8 (B, 3, S, S), rows (B,), damaged [(row, sentence)] whose images are black."""

    def __init__(self, source, crop):
        self.source, self.crop = source, crop

    def __getitem__(self, key):
        rows, views, damaged = [int(row) for row in key[1]], [], []
        for row in rows:
            try:
                views.append(self.crop(self.source.read(row), None, self.source.name(row)))
            except DamagedImage as error:
                damaged.append((row, str(error)))
                views.append(torch.zeros(3, self.crop.resolution, self.crop.resolution, dtype=torch.uint8))
        return {"images": torch.stack(views), "rows": torch.tensor(rows), "damaged": damaged}


class TextsOf:
    """`texts[(_, numbers)]`: tokens, a dict of (B, L), of texts by their number."""

    def __init__(self, source, tokenizer):
        self.source, self.tokenizer = source, tokenizer

    def __getitem__(self, key):
        return {"tokens": self.tokenizer([self.source.text(int(number)) for number in key[1]])}


@torch.no_grad()
def collect(encode, numbered_batches, autocast):
    """`encode(batch)` of every process's batches, on all processes, float32 (N, D) in the order of their numbers.

    numbered_batches: (integers (b,), batch) pairs of this process; together the numbers are N different ones
    encode:           batch -> (b, D)
    """
    mine = []
    for numbers, batch in numbered_batches:
        with autocast:
            mine.append((np.asarray(numbers), encode(batch).float().cpu().numpy()))
    parts = [part for parts in dist.gather(mine) for part in parts]
    order = np.argsort(np.concatenate([numbers for numbers, _ in parts]), kind="stable")
    return torch.from_numpy(np.concatenate([features for _, features in parts])[order])


def shares(numbers, batch_size, rank, world_size):
    """This process's batches of `numbers`, dealt out in turn: every number is in exactly one batch of one process."""
    batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    return batches[rank::world_size]


def stop_if_asked(stop):
    if stop:
        raise Interrupted("interrupted; what is encoded is kept, and the same command continues from there")
