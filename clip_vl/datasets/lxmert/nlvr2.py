"""NLVR2 samples: a statement with each of its images, true or false."""

import io

import numpy as np
import torch

from clip_vl.datasets.images.decoding import decode_image
from clip_vl.datasets.lxmert.batches import load_images
from clip_vl.datasets.lxmert.wordpiece import pad_tokens


class StatementDataset:
    """`dataset[(epoch, rows)]` is a batch of B statements about `images_each` images.

    The texts are (B * images_each, L), the images of a statement one after the other; target is (B,) 0 false, 1 true,
    -1 unknown; usable (B,); rows (B,) is the first item of each statement in the annotations.
    """

    def __init__(self, annotations, image_source, args, *, images_each, with_images=True):
        self.annotations, self.image_source, self.args = annotations, image_source, args
        self.images_each, self.with_images = images_each, with_images

    def __getitem__(self, key):
        _, rows = key
        first = np.asarray(rows) * self.images_each
        items = (first[:, None] + np.arange(self.images_each)).flatten()
        batch = pad_tokens([self.annotations.tokens(int(item)) for item in items])
        batch["usable"] = torch.ones(len(items), dtype=torch.bool)
        if self.with_images:
            batch |= load_images(self.image_source, self.annotations, items, self.args)
        batch["usable"] = batch["usable"].view(-1, self.images_each).all(1)
        target = [next(iter(self.annotations.answers(int(item))[0]), -1) for item in first]
        return batch | {"target": torch.tensor(target, dtype=torch.int64), "rows": torch.from_numpy(first)}

    def read_image(self, row):
        """The images of the statement whose first item is `row`, beside each other as the bytes of one file."""
        items = range(row, row + self.images_each)
        return side_by_side([self.image_source.read(self.annotations.image_id(item)) for item in items])


def side_by_side(pictures):
    """Bytes of image files -> bytes of one PNG that shows them in a row."""
    from PIL import Image

    images = [Image.fromarray(decode_image(data).permute(1, 2, 0).numpy()) for data in pictures]
    height = max(image.height for image in images)
    row = Image.new("RGB", (sum(image.width + 8 for image in images) - 8, height), "white")
    left = 0
    for image in images:
        row.paste(image, (left, (height - image.height) // 2))
        left += image.width + 8
    buffer = io.BytesIO()
    row.save(buffer, "PNG")
    return buffer.getvalue()
