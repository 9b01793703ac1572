"""ProtoCLIP's mathematics: the prototypical term, clusters, and prototypes of an episode."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from clip_vl.engine.errors import UserError
from clip_vl.engine.k_means import k_means
from clip_vl.losses.base import unit
from clip_vl.losses.prototypes import cluster, episode_prototypes, grouped_means, prototypical_loss


def waves(rows, function, start, step):
    return function(start + step * torch.arange(rows * 3, dtype=torch.float64).view(rows, 3))


@pytest.mark.parametrize("temperature, expected", [(0.1, 12.535864), (-1, 12.510444)])
def test_prototypical_term_is_that_of_the_published_code(temperature, expected):
    student, labels = waves(4, torch.cos, 2, 1.7), torch.tensor([0, 1, 4, 2])
    student_prototypes, teacher_prototypes = unit(waves(5, torch.cos, 0.3, 0.9)), unit(waves(5, torch.sin, 0.5, 1.3))
    loss = prototypical_loss(
        student, labels, student_prototypes, teacher_prototypes, scale=1 / 0.07, target_temperature=temperature
    )
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def blobs(k=4, per=15, width=3, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(k), per)
    return (10 * rng.standard_normal((k, width))[labels] + 0.1 * rng.standard_normal((k * per, width))).astype(
        "f4"
    ), labels


def test_clusters_are_those_of_scikit_learn():
    features, labels = blobs()
    found = cluster(features, 4, redo=3)
    expected = KMeans(4, n_init=3, random_state=0).fit(features)
    assert adjusted_rand_score(labels, found.labels) == 1.0
    order = found.centroids[:, 0].argsort(), expected.cluster_centers_[:, 0].argsort()
    assert np.allclose(found.centroids[order[0]], expected.cluster_centers_[order[1]], atol=1e-4)
    assert torch.allclose(
        found.centroids, grouped_means(features, found.labels, 4), atol=1e-4
    )  # means, not unit vectors


def test_without_faiss_scikit_learn_finds_the_clusters(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    features, labels = blobs()
    assert adjusted_rand_score(labels, k_means(features, 4, 20, 3, 0)[0]) == 1.0


def test_clusters_are_a_function_of_the_seed():
    features = np.random.default_rng(0).standard_normal((200, 5)).astype("f4")
    one, same, other = (cluster(features, 10, seed=seed).labels for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_nan_is_taken_as_zero():
    features, _ = blobs()
    features[3] = np.nan
    found = cluster(features, 5, redo=5)
    assert torch.isfinite(found.centroids).all()
    assert found.centroids[found.labels[3]].norm() < 1


def test_fewer_features_than_clusters_are_one_sentence():
    with pytest.raises(UserError, match="--k 5 clusters of 4 features"):
        cluster(np.zeros((4, 2)), 5)


def test_back_translated_prototypes_are_means_of_student_features_by_teacher_labels():
    features = torch.tensor([[1.0, 2], [3, 4], [10, 10], [float("nan"), 6]])
    means = grouped_means(features, torch.tensor([0, 0, 3, 1]), 4)
    assert means.tolist() == [[2, 3], [0, 6], [0, 0], [10, 10]]


def test_with_back_translation_the_spaces_need_not_be_one():
    teacher, labels = blobs()
    student = torch.randn(60, 7)
    found = episode_prototypes(student, teacher, 4, pbt=True, redo=3)
    assert found.student.shape == (4, 7) and found.teacher.shape == (4, 3)
    for label in range(4):
        rows = found.labels == label
        assert torch.allclose(found.student[label], student[rows].mean(0), atol=1e-6)
        assert len(set(labels[rows.numpy()])) == 1


def test_without_it_they_are_the_teachers_centroids():
    teacher, _ = blobs()
    found = episode_prototypes(torch.randn(60, 3), teacher, 4, pbt=False)
    assert torch.equal(found.student, found.teacher)
    with pytest.raises(UserError, match="width 3 cannot meet features of width 7: an external teacher needs --PBT"):
        episode_prototypes(torch.randn(60, 7), teacher, 4, pbt=False)


def test_one_clustering_of_an_external_teacher_serves_both_sides():
    teacher, _ = blobs()
    clusters = cluster(teacher, 4)
    image, text = (episode_prototypes(torch.randn(60, width), clusters, 4, pbt=True) for width in (5, 6))
    assert torch.equal(image.labels, text.labels) and image.student.shape == (4, 5) and text.student.shape == (4, 6)


def test_an_external_teacher_of_other_rows_is_one_sentence():
    with pytest.raises(UserError, match="features of 60 rows and the student of 59"):
        episode_prototypes(torch.randn(59, 3), blobs()[0], 4, pbt=True)
