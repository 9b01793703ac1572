"""ProtoCLIP's loss with the prototypes of the running episode as its state (arXiv:2206.10996)."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.losses.base import unit
from clip_vl.losses.prototypes import cluster, episode_prototypes, prototypical_loss


@dataclass(frozen=True)
class Phases:
    """Which epochs, counted from 0, have prototypes: not those of InfoNCE's warm-up, nor LiT at the end.

    warmup: epochs of InfoNCE alone;  lit_start: first epoch of LiT, counted from 1, or 0 and less for never
    clustering: epochs between two clusterings, -1 for none
    """

    warmup: int = 0
    lit_start: int = -1
    clustering: int = 1

    def has_prototypes(self, epoch):
        is_lit = self.lit_start > 0 and epoch >= self.lit_start - 1
        return self.warmup <= epoch and not is_lit

    def clusters_in(self, epoch):
        """Whether prototypes are made at the start of this epoch: they serve until the next clustering."""
        served = range(epoch, epoch + self.clustering)
        due = self.clustering >= 1 and epoch % self.clustering == 0
        return due and any(self.has_prototypes(later) for later in served)


DIRECTIONS = {  # (student, teacher)
    "i2t": ("image", "text"),
    "t2i": ("text", "image"),
    "i2e": ("image", "external"),
    "t2e": ("text", "external"),
}


def read_external(path, rows):
    """The array of an external teacher, (at least `rows`, width) floats, memory-mapped. Raises UserError."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"--external_teacher {path} is not a .npy array that can be read: {error}") from None
    if getattr(array, "ndim", 0) != 2 or array.dtype.kind != "f":
        raise UserError(f"--external_teacher {path} must hold floats, (rows, width)")
    if len(array) < rows:
        raise UserError(f"--external_teacher {path} has {len(array)} rows, the training data {rows}")
    return array


class EpisodeLoss(nn.Module):
    """Prototypes of an episode: `fill` once per episode, then a loss for each of its batches.

    pairs:    how many pairs an episode has, over all processes;  k: prototypes;  width: of the projections
    external: array (rows of the data set, d) of an external teacher, or None
    The buffers are all a resumed run needs: the features they came from are gone by then.
    """

    def __init__(self, pairs, k, width, external=None, *, pbt=False, target_temperature=-1.0, kmeans=None):
        super().__init__()
        if external is not None and not pbt:
            raise UserError("--external_teacher needs --PBT: its features are of another space than the projections")
        if k > pairs:
            raise UserError(f"--k {k} clusters of an episode of {pairs} pairs: enlarge --episode_size or lower --k")
        self.k, self.pbt, self.temperature, self.external = k, pbt, target_temperature, external
        self.kmeans = kmeans or {}
        self.directions = [name for name in DIRECTIONS if external is not None or not name.endswith("e")]
        widths = {"external": 0 if external is None else external.shape[1]}
        self.register_buffer("rows", torch.full((pairs,), -1))
        for name in self.directions:
            self.register_buffer(f"{name}_labels", torch.zeros(pairs, dtype=torch.int64))
            self.register_buffer(f"{name}_student", torch.zeros(k, width))
            self.register_buffer(f"{name}_teacher", torch.zeros(k, widths.get(DIRECTIONS[name][1], width)))

    @property
    def is_filled(self):
        return bool(self.rows[0] >= 0)

    def fill(self, rows, image_features, text_features, seed):
        """Cluster on rank 0, hand the result to all.

        rows: int (pairs,), sorted, those of the episode, some of them perhaps twice
        image_features, text_features: (pairs, P), projections of these rows, L2-normalised here: a prototype is a mean
        of unit vectors. An external teacher's features are clustered as they are.
        """
        self.rows.copy_(torch.as_tensor(rows))
        if dist.rank() == 0:
            features = {"image": unit(image_features.float()), "text": unit(text_features.float())}
            if self.external is not None:
                features["external"] = np.asarray(self.external[rows], dtype=np.float32)
            clusters = {name: cluster(values, self.k, seed=seed, **self.kmeans) for name, values in features.items()}
            for name in self.directions:
                student, teacher = DIRECTIONS[name]
                found = episode_prototypes(features[student], clusters[teacher], self.k, self.pbt)
                for part in ("labels", "student", "teacher"):
                    getattr(self, f"{name}_{part}").copy_(getattr(found, part))
        dist.broadcast_buffers(self)

    def forward(self, image_projected, text_projected, rows, scale):
        """Projections (B, P) of rows (B,) -> {"proto": scalar, "proto_external": scalar}.

        A row that was not clustered, where several epochs share a clustering, counts with a loss of 0.
        """
        rows = rows.to(self.rows.device)
        position = torch.searchsorted(self.rows, rows).clamp(max=len(self.rows) - 1)
        known = self.rows[position] == rows
        student = {"image": image_projected[known], "text": text_projected[known]}
        losses = {
            name: self._direction(name, student[DIRECTIONS[name][0]], position[known], scale) * known.float().mean()
            for name in self.directions
        }
        halves = {"proto": ("i2t", "t2i"), "proto_external": ("i2e", "t2e")}
        return {part: sum(losses[n] for n in names) / 2 for part, names in halves.items() if names[0] in losses}

    def _direction(self, name, student, position, scale):
        """The loss of student features (n, P) of the rows at these positions (n,) of the episode; 0 of none."""
        if not len(position):
            return 0.0 * student.sum()
        return prototypical_loss(
            student,
            getattr(self, f"{name}_labels")[position],
            getattr(self, f"{name}_student"),
            getattr(self, f"{name}_teacher"),
            scale=scale,
            target_temperature=-1.0 if name.endswith("e") else self.temperature,  # external ones are always hard
        )
