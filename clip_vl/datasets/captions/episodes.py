"""The order of training: which rows make the batches of an epoch, the same global batches for any number of processes.

All processes compute the order from (seed, epoch) and each takes its part of every global batch, so no index is ever
exchanged. An incomplete last batch is dropped.
"""

import numpy as np

from clip_vl.engine.errors import UserError
from clip_vl.engine.random import numpy_rng

SAMPLINGS = ("replacement", "permutation")


class PlainBatches:
    """Every row once per epoch, shuffled; with `segments`, the rows of a source of weight w come w times.

    size:       number of rows
    batch_size: rows per process; a global batch has world_size times as many
    segments:   [(number of rows, weight)] of consecutive rows. Of a weight's fraction a share of the rows, drawn anew
                in each epoch, comes once more.
    """

    def __init__(self, size, batch_size, *, rank=0, world_size=1, seed=0, segments=None):
        self.size, self.batch_size, self.rank, self.world_size, self.seed = size, batch_size, rank, world_size, seed
        self.segments = segments or [(size, 1.0)]
        if sum(rows for rows, _ in self.segments) != size:
            raise ValueError(f"the segments {self.segments} are not {size} rows")
        self.num_batches = self.rows_per_epoch() // (batch_size * world_size)
        if not self.num_batches:
            raise UserError(
                f"the training data give {self.rows_per_epoch():,} rows per epoch, fewer than one batch of "
                f"{batch_size} on each of {world_size} processes; make --batch_size smaller"
            )

    def __len__(self):
        return self.num_batches

    def rows_per_epoch(self):
        return sum(int(weight) * rows + round(weight % 1 * rows) for rows, weight in self.segments)

    def epoch(self, epoch):
        """This process's batches of an epoch in order: rows, int64 (num_batches, batch_size). Slice it to resume."""
        rows = self._rows(numpy_rng(self.seed, "batches", epoch))
        shape = (self.num_batches, self.world_size, self.batch_size)
        return rows[: np.prod(shape)].reshape(shape)[:, self.rank]

    def _rows(self, rng):
        """All rows of an epoch, shuffled."""
        parts, start = [], 0
        for rows, weight in self.segments:
            whole = np.arange(start, start + rows)
            more = rng.choice(rows, round(weight % 1 * rows), replace=False) + start
            parts += [whole] * int(weight) + [more]
            start += rows
        return rng.permutation(np.concatenate(parts))


class EpisodeBatches(PlainBatches):
    """Each epoch is an episode: `episode_size` rows drawn anew.

    sampling: "replacement" draws each row independently (an episode as long as the data is a bootstrap: 63.2 % of the
              rows are in it), in proportion to the weights; "permutation" takes the first rows of a shuffled epoch, and
              of a second one where the episode is longer
    """

    def __init__(self, size, batch_size, *, episode_size, sampling="replacement", **options):
        if sampling not in SAMPLINGS:
            raise UserError(f"--episode_sampling {sampling} is not one of {', '.join(SAMPLINGS)}")
        self.episode_size, self.sampling = episode_size, sampling
        super().__init__(size, batch_size, **options)

    def rows_per_epoch(self):
        return self.episode_size

    def _rows(self, rng):
        if self.sampling == "replacement":
            return self._independent(rng)
        parts, left = [], self.episode_size
        while left > 0:
            parts.append(super()._rows(rng)[:left])
            left -= len(parts[-1])
        return np.concatenate(parts)

    def _independent(self, rng):
        """A row of the segment in which a uniform draw of the summed weights falls."""
        rows, weights = (np.array(values) for values in zip(*self.segments))
        ends = np.cumsum(rows * weights)
        draws = rng.random(self.episode_size) * ends[-1]
        segment = np.searchsorted(ends, draws, side="right").clip(max=len(ends) - 1)
        within = ((draws - (ends - rows * weights)[segment]) / weights[segment]).astype(np.int64)
        return (np.cumsum(rows) - rows)[segment] + within.clip(0, rows[segment] - 1)


def training_order(source, batch_size, *, episode_size=0, sampling="replacement", rank=0, world_size=1, seed=0):
    """`PlainBatches` of a `Mixture`, or `EpisodeBatches` where the episode has a size."""
    options = {"rank": rank, "world_size": world_size, "seed": seed, "segments": source.segments}
    if episode_size:
        return EpisodeBatches(len(source), batch_size, episode_size=episode_size, sampling=sampling, **options)
    return PlainBatches(len(source), batch_size, **options)
