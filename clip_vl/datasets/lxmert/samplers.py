"""Which items share a batch: images of like shape, the same global batches for any number of processes.

All processes compute the same global batches from (seed, epoch) and each takes its part of them, so that all run the
same shape in every step and no index is ever exchanged.
"""

from itertools import pairwise

import numpy as np

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.random import numpy_rng


def aspect_groups(heights, widths, factor):
    """The group of each image by its aspect height / width, int16 (N,).

    factor k > 0: 2k + 1 edges from 1/2 to 2, evenly spaced in the exponent; 0: the single edge 1; negative: one group.
    An aspect on an edge belongs to the group above, so squares join the portraits, as they do on the canvas.
    """
    edges = [] if factor < 0 else [1.0] if factor == 0 else 2.0 ** np.linspace(-1, 1, 2 * factor + 1)
    aspects = np.asarray(heights, dtype=np.float64) / np.asarray(widths, dtype=np.float64)
    return np.searchsorted(edges, aspects, side="right").astype(np.int16)


class TrainBatches:
    """Batches of one canvas, nearly all of one aspect group, reshuffled every epoch from (seed, epoch).

    group_of_item, canvas_of_item: small non-negative integers, (N,) each
    image_of_item: (N,) integers, read where sentences_per_image is above 1
    batch_size: items per process; a global batch has world_size times as many

    What is shuffled is a chunk of K = sentences_per_image items of one image. An image of n items makes ceil(n / K)
    chunks, the last one filled up with other items of the image, or with repeats where there are none. Each group
    yields its full batches; the leftovers of all groups of a canvas make further batches together, the last one topped
    up with other chunks of that canvas. So each item comes at least once per epoch, and the number of batches follows
    from the sizes of the groups alone: it is the same in every epoch, and only which chunks are left over changes.
    """

    def __init__(
        self,
        group_of_item,
        canvas_of_item,
        batch_size,
        *,
        rank=0,
        world_size=1,
        seed=0,
        image_of_item=None,
        sentences_per_image=1,
    ):
        if batch_size % sentences_per_image:
            raise UserError(
                f"--batch_size {batch_size} is not a multiple of --sentences_per_image {sentences_per_image}: "
                "a batch holds that many sentences of each of its images"
            )
        if not len(group_of_item):
            raise DataError("there is no item to make batches of")
        self.batch_size, self.rank, self.world_size, self.seed = batch_size, rank, world_size, seed
        self.chunk_size = sentences_per_image
        canvases, groups = np.asarray(canvas_of_item), np.asarray(group_of_item)
        if self.chunk_size > 1:
            self.image_of_item, self.places, sample = _cut_into_chunks(image_of_item, self.chunk_size)
            canvases, groups = canvases[sample], groups[sample]
        self.key_of_chunk, self.canvas_borders = _sort_keys(canvases, groups)
        self.chunks_per_batch = world_size * batch_size // self.chunk_size  # of a global batch
        sizes = [borders[-1] - borders[0] for borders in self.canvas_borders]
        self.num_batches = sum(-(-size // self.chunks_per_batch) for size in sizes)

    def __len__(self):
        return self.num_batches

    def epoch(self, epoch):
        """This process's batches of an epoch in order: item indices, int64 (num_batches, batch_size).

        To resume an epoch, slice it: rows already trained on are the first ones.
        """
        rng = numpy_rng(self.seed, "batches", epoch)
        chunks = self._draw_chunks(rng)
        order = rng.permutation(len(self.key_of_chunk))
        order = order[np.argsort(self.key_of_chunk[order], kind="stable")]  # by canvas and group, shuffled within
        batches = np.concatenate([self._fill_batches(order, borders, rng) for borders in self.canvas_borders])
        batches = batches.reshape(self.num_batches, self.world_size, -1)[rng.permutation(self.num_batches), self.rank]
        return (batches if chunks is None else chunks[batches]).reshape(self.num_batches, self.batch_size)

    def _draw_chunks(self, rng):
        """Items of each chunk, (chunks, K), the items of an image in a new order; None where chunk i is item i."""
        if self.chunk_size == 1:
            return None
        order = rng.permutation(len(self.image_of_item))
        by_image = order[np.argsort(self.image_of_item[order], kind="stable")]
        return by_image[self.places]

    def _fill_batches(self, order, borders, rng):
        """The chunks of one canvas, group after group, rearranged into whole batches: a flat array."""
        full, left = [], []
        for start, stop in pairwise(borders):
            cut = stop - (stop - start) % self.chunks_per_batch
            full.append(order[start:cut])
            left.append(order[cut:stop])
        full, left = np.concatenate(full), np.concatenate(left)
        missing = -len(left) % self.chunks_per_batch
        # Where no group fills a batch the first leftovers come again: the last batch holds the last ones.
        more = rng.choice(full, missing, replace=False) if len(full) else np.resize(left, missing)
        return np.concatenate([full, left, more])


def _cut_into_chunks(image_of_item, chunk_size):
    """Cut the list of items sorted by image into chunks of one image.

    returns: image of each item, numbered from 0, (N,); places in the sorted list, (chunks, chunk_size); an item of the
    image of each chunk, (chunks,)
    """
    _, first, image_of_item, counts = np.unique(
        image_of_item, return_index=True, return_inverse=True, return_counts=True
    )
    chunks = -(-counts // chunk_size)  # of each image
    image = np.repeat(np.arange(len(counts)), chunks)  # of each chunk
    number = np.arange(len(image)) - (np.cumsum(chunks) - chunks)[image]  # of each chunk within its image
    offset = number[:, None] * chunk_size + np.arange(chunk_size)
    offset %= counts[image, None]  # past the last item of the image: from its first
    return image_of_item, (np.cumsum(counts) - counts)[image, None] + offset, first[image]


def _sort_keys(canvases, groups):
    """One small key per chunk that sorts by canvas, then group; and where the groups of each canvas begin and end then.

    returns: keys (chunks,); a list per canvas of the borders of its groups in the sorted list
    """
    canvases, groups = canvases.astype(np.int64), groups.astype(np.int64)
    num_groups = groups.max() + 1
    keys = canvases * num_groups + groups
    counts = np.bincount(keys, minlength=(canvases.max() + 1) * num_groups).reshape(-1, num_groups)
    ends = np.cumsum(counts).reshape(counts.shape)
    borders = [[int(end[0] - count[0]), *end.tolist()] for end, count in zip(ends, counts)]
    return keys.astype(np.min_scalar_type(keys.max())), borders  # NumPy sorts 8 and 16 bits in linear time


class EvalBatches:
    """Each item exactly once, in fixed batches that do not depend on the number of processes; this process's share.

    Batches hold one canvas each and keep the items of an image together, so that it is decoded once. Whole batches are
    dealt out in turn: shares differ by one batch at most, the last batch of a canvas may be short, nothing is padded.
    """

    def __init__(self, canvas_of_item, batch_size, *, rank=0, world_size=1, group_of_item=None, image_of_item=None):
        canvases = np.asarray(canvas_of_item)
        sort_by = [canvases, group_of_item, image_of_item]
        order = np.lexsort([np.asarray(keys) for keys in reversed(sort_by) if keys is not None])
        borders = np.flatnonzero(np.diff(canvases[order])) + 1
        batches = [
            part[start : start + batch_size]
            for part in np.split(order, borders)
            for start in range(0, len(part), batch_size)
        ]
        self.batches = batches[rank::world_size]

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)
