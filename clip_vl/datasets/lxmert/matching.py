"""Batches for a head that judges pairs: images with captions, each image with its own and some captions of others."""

from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.images.canvas import is_portrait, resized_size
from clip_vl.datasets.images.decoding import DamagedImage, decode_image, read_image_size, resize
from clip_vl.datasets.images.image_folders import check_recorded
from clip_vl.datasets.lxmert.batches import place_pictures
from clip_vl.datasets.lxmert.samplers import TrainBatches, aspect_groups
from clip_vl.datasets.lxmert.wordpiece import pad_tokens
from clip_vl.datasets.storage.cache import build_once
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.random import numpy_rng

UNREADABLE = (1, 2)  # (height, width) that stands for an image without a readable header: nothing but landscape


def image_sizes(source, cache_root):
    """(height, width) of the image of every row, int32 (N, 2), read from the headers once and kept."""

    def build(folder):
        sizes = np.empty((len(source), 2), np.int32)
        for row in range(len(source)):
            try:
                sizes[row] = read_image_size(source.name(row), source.read(row))
            except DamagedImage:  # training names it
                sizes[row] = UNREADABLE
        np.save(folder / "sizes.npy", sizes)

    key = digest_of({"image sizes": 1, "source": source.digest})
    folder = dist.first_rank_builds(lambda: build_once(Path(cache_root), "image-sizes", key, build))
    return np.load(folder / "sizes.npy", allow_pickle=False)


def whole_batches(source, sizes, args):
    """The order of training, the same on all processes: rows of images of like shape, W * --batch_size a batch."""
    if any(weight != 1 for _, weight in source.segments):
        raise UserError(f"--train_data {args.train_data}: weights are for `align`; here every pair comes once an epoch")
    heights, widths = sizes.T
    groups = aspect_groups(heights, widths, args.aspect_ratio_group_factor)
    canvases = is_portrait(heights, widths).astype(np.int16) * (not args.dynamic_padding)
    return TrainBatches(groups, canvases, args.batch_size * dist.world_size(), seed=args.seed)


def draw_pairs(image_ids, texts, negatives, rng):
    """(images, texts) of the pairs to judge, places in the batch, int64 (P,) each: the G own pairs first.

    Then up to `negatives` texts of others for each image; each text so also meets as many images of others, in the same
    pairs. A text that describes the same image, or has the same words, is no negative and left out.
    image_ids: (G,);  texts: G hashable values
    """
    G = len(image_ids)
    order, shifts = rng.permutation(G), 1 + rng.permutation(G - 1)[:negatives]
    images = np.repeat(order, len(shifts))
    others = order[(np.arange(G)[:, None] + shifts) % G].ravel()
    known = {}
    words, image_ids = np.array([known.setdefault(text, len(known)) for text in texts]), np.asarray(image_ids)
    different = (image_ids[images] != image_ids[others]) & (words[images] != words[others])
    own = np.arange(G)
    return np.concatenate([own, images[different]]), np.concatenate([own, others[different]])


class MatchingDataset:
    """`dataset[(epoch, rows)]` is this process's part of a batch; every draw is keyed by (seed, epoch, row).

    rows: (G,) of all W processes, of which this one has B = G / W consecutive images and all pairs of those
    A batch has
    images:   uint8 (B, 3, H, W) on one canvas;  image_boxes: (B, 4);  usable: bool (B,), which could be read
    input_ids, attention_mask: (P, L), the texts of the pairs;  image_of_text: (P,) place among the B images
    text_of_pair: (P,) place of the text in the whole batch
    rows:     (B,);  damaged: [(name, sentence)] of images that are black
    """

    def __init__(self, source, sizes, tokenizer, args):
        self.source, self.sizes, self.tokenizer, self.args = source, sizes, tokenizer, args
        self.rank, self.world_size = dist.rank(), dist.world_size()

    def __getitem__(self, key):
        epoch, rows = int(key[0]), [int(row) for row in key[1]]
        B = len(rows) // self.world_size
        first = self.rank * B
        captions = [self.source.caption(row, numpy_rng(self.args.seed, "caption", epoch, row)) for row in rows]
        texts = self.tokenizer.encode(captions, self.args.max_length)
        image_ids = [self.source.image_id(row) for row in rows]
        rng = numpy_rng(self.args.seed, "pairs", epoch, rows[0], rows[-1])
        pairs = np.stack(draw_pairs(image_ids, list(map(tuple, texts)), self.args.negatives, rng))
        images, others = pairs[:, (pairs[0] >= first) & (pairs[0] < first + B)]
        batch = pad_tokens([texts[place] for place in others]) | self._pictures(rows[first : first + B])
        batch["image_of_text"], batch["text_of_pair"] = torch.from_numpy(images - first), torch.from_numpy(others)
        return batch

    def _pictures(self, rows):
        pictures, damaged, usable = [], [], []
        for row in rows:
            try:
                pictures.append(self._picture(row))
                usable.append(True)
            except DamagedImage as error:
                damaged.append((self.source.name(row), str(error)))
                pictures.append(torch.zeros(3, 1, 1, dtype=torch.uint8))
                usable.append(False)
        sizes = [tuple(map(int, self.sizes[row])) for row in rows]
        found = {"usable": torch.tensor(usable), "rows": torch.tensor(rows), "damaged": damaged}
        return place_pictures(pictures, sizes, self.args) | found

    def _picture(self, row):
        """Resized, uint8 (3, h, w); one of another size than its header said would not fit the batch."""
        name = self.source.name(row)
        image = decode_image(self.source.read(row), name)
        size = tuple(image.shape[1:])
        check_recorded(name, size, self.sizes[row])
        return resize(image, resized_size(*size, self.args.image_size_min, self.args.image_size_max))
