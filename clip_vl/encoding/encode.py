"""Images alone and texts alone, for what is encoded once: evaluation, caches of a frozen tower, mining."""

import numpy as np
import torch

from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.loader import build_loader, evaluation_loader, to_device
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, Interrupted
from clip_vl.engine.optim import autocast


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


class HeldOutPairs:
    """The pairs of a source for retrieval: each image once, however many rows it has, and all of its texts.

    teacher: {"image" or "text": `TeacherFeatures`} stand for what a frozen tower would see
    rows: (N,) of the images;  numbers: (M,) of the texts;  image_of_text: (M,), place in `rows`
    """

    def __init__(self, source, crop, tokenizer, args, teacher=None):
        self.source, self.args, self.teacher = source, args, teacher or {}
        self.images, self.texts = ImagesOf(source, crop), TextsOf(source, tokenizer)
        place, rows, numbers, owners = {}, [], [], []
        for row in range(len(source)):
            image = place.setdefault(source.image_id(row), len(rows))
            if image == len(rows):
                rows.append(row)
            found = [source.text_number(row, index) for index in range(source.num_captions(row))]
            numbers += found
            owners += [image] * len(found)
        self.rows, self.numbers, self.image_of_text = np.array(rows), np.array(numbers), np.array(owners)

    def image_batches(self, device):
        """This process's (places in `rows`, batch), on the device. Raises DataError at a damaged image."""
        return self._batches("image", "images", self.images, self.rows, device)

    def text_batches(self, device):
        """This process's (places in `numbers`, batch)."""
        return self._batches("text", "tokens", self.texts, self.numbers, device)

    def _batches(self, side, name, dataset, wanted, device):
        mine = shares(np.arange(len(wanted)), self.args.batch_size, dist.rank(), dist.world_size())
        parts, teacher = [wanted[part] for part in mine], self.teacher.get(side)
        if teacher is None:
            return zip(mine, evaluation_loader(dataset, parts, device, self.args))
        return zip(mine, ({name: self._cached(teacher, part).to(device)} for part in parts))

    def _cached(self, teacher, numbers):
        features = np.asarray(teacher[numbers], dtype=np.float32)
        bad = np.flatnonzero(~np.isfinite(features).all(1))
        if len(bad):  # images alone: every text can be read
            raise DataError(f"evaluation needs every image: {self.source.name(int(numbers[bad[0]]))} could not be read")
        return torch.from_numpy(features)


@torch.no_grad()
def encode_numbers(dataset, numbers, encode, device, args, *, skip_damaged=False, stop=None):
    """Features of some numbers of a dataset by this process alone, float32 (n, D), in the precision of the flags.

    encode:       batch on the device -> (b, D)
    skip_damaged: an image that cannot be read has features of NaN, instead of being a DataError
    stop:         true when a signal asks to end: then Interrupted
    """
    parts, features = shares(numbers, args.batch_size, 0, 1), []
    loader = (
        build_loader(dataset, 0, parts, args, device)
        if skip_damaged
        else evaluation_loader(dataset, parts, device, args)
    )
    for batch in loader:
        if stop:
            raise Interrupted("interrupted; what is encoded is kept, and the same command goes on from there")
        with autocast(device, args):
            part = encode(to_device(batch, device)).float().cpu()
        for row, _ in batch.get("damaged", ()):
            part[batch["rows"] == row] = torch.nan
        features.append(part)
    return torch.cat(features)


def shares(numbers, batch_size, rank, world_size):
    """This process's batches of `numbers`, dealt out in turn: every one in exactly one batch of one process."""
    batches = [numbers[start : start + batch_size] for start in range(0, len(numbers), batch_size)]
    return batches[rank::world_size]
