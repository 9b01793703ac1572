"""ProtoCLIP: prototypes of an episode, and the loss that tells them apart (arXiv:2206.10996).

prototypes = episode_prototypes(image_features, text_features, k=20000, pbt=True)     # once per episode
loss = prototypical_loss(image_projected, prototypes.labels[rows], prototypes.student, prototypes.teacher,
                         scale=prototype_scale, target_temperature=0.01)
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from clip_vl.engine.errors import UserError
from clip_vl.engine.k_means import k_means
from clip_vl.engine.random import derive_seed
from clip_vl.losses.base import at_least_single, full_precision, unit


def prototypical_loss(student, labels, student_prototypes, teacher_prototypes=None, *, scale, target_temperature=-1.0):
    """Cross entropy over K prototypes (equations 4 and 6), mean over the rows of this process.

    student:            (B, P), normalised here;  labels: int64 (B,), cluster of each row's teacher feature
    student_prototypes: (K, P);  teacher_prototypes: (K, P'), needed for soft targets
    scale:              scalar, 1 / temperature of the student
    target_temperature: above 0, the target is softmax_k(teacher_prototypes[label] . teacher_prototypes / temperature);
                        otherwise the label itself
    """
    with full_precision(student.device):
        student = unit(at_least_single(student))
        logits = scale * student @ student_prototypes.to(student).T
        return F.cross_entropy(logits, prototype_targets(labels, teacher_prototypes, target_temperature))


def prototype_targets(labels, teacher_prototypes, temperature):
    """The labels (B,), or with a temperature above 0 probabilities (B, K) of prototypes near the label's."""
    if temperature <= 0:
        return labels
    return (teacher_prototypes[labels] @ teacher_prototypes.T / temperature).softmax(1)


@dataclass
class Clusters:
    """labels: int64 (N,), cluster of each feature;  centroids: fp32 (K, D), means, not normalised."""

    labels: torch.Tensor
    centroids: torch.Tensor


@dataclass
class Prototypes:
    """What one direction of an episode needs.

    labels: int64 (N,), of the episode's rows;  student: (K, P), what student features are compared with;
    teacher: (K, P'), the clusters' centres, which soften targets
    """

    labels: torch.Tensor
    student: torch.Tensor
    teacher: torch.Tensor


def episode_prototypes(student, teacher, k, pbt, *, iterations=20, redo=1, seed=0):
    """Prototypes of a student's features from the clusters of its teacher's (figure 3).

    student: (N, P), features of the episode's rows of the student's side, L2-normalised (`EpisodeLoss.fill`)
    teacher: (N, P'), the other side's or an external teacher's features of the same rows, or their Clusters: the
             external ones serve both sides
    pbt:     prototypical back translation: the student's prototypes are means of its own features grouped by the
             teacher's labels, so the two spaces need not be one; without it, the teacher's centroids
    """
    student = torch.as_tensor(student)
    clusters = (
        teacher if isinstance(teacher, Clusters) else cluster(teacher, k, iterations=iterations, redo=redo, seed=seed)
    )
    if len(clusters.labels) != len(student):
        raise UserError(f"the teacher has features of {len(clusters.labels)} rows and the student of {len(student)}")
    if pbt:
        return Prototypes(clusters.labels, grouped_means(student, clusters.labels, k), clusters.centroids)
    if clusters.centroids.shape[1] != student.shape[1]:
        raise UserError(
            f"prototypes of width {clusters.centroids.shape[1]} cannot meet features of width {student.shape[1]}: "
            "an external teacher needs --PBT"
        )
    return Prototypes(clusters.labels, clusters.centroids, clusters.centroids)


def cluster(features, k, *, iterations=20, redo=1, seed=0):
    """Euclidean k-means of (N, D) features, NaN taken as 0; the best of `redo` runs -> Clusters."""
    features = np.nan_to_num(np.asarray(features, np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if len(features) < k:
        raise UserError(f"--k {k} clusters of {len(features)} features: --episode_size must be at least --k")
    labels, centroids = k_means(
        np.ascontiguousarray(features), k, iterations, redo, derive_seed(seed, "k-means") % 2**31
    )
    return Clusters(torch.from_numpy(labels.astype(np.int64)), torch.from_numpy(np.array(centroids, np.float32)))


def grouped_means(features, labels, k):
    """Mean of the features of each label, 0 where there is none: (N, D), int64 (N,) -> (K, D)."""
    features = torch.as_tensor(features).float().nan_to_num(0.0, 0.0, 0.0)
    sums = features.new_zeros(k, features.shape[1]).index_add_(0, labels, features)
    return sums / labels.bincount(minlength=k).clamp(min=1)[:, None]
