"""Approximate neighbours: most of the true ones where there are clusters, and an honest recall."""

from functools import partial

import pytest
import torch

from clip_vl.engine import dist
from clip_vl.evaluation.neighbours import inverted_lists
from clip_vl.evaluation.neighbours.approximate import Sample, approximate_top_k, find_neighbours
from clip_vl.evaluation.neighbours.exact import sharded_top_k, top_k
from clip_vl.evaluation.neighbours.inverted_lists import InvertedLists


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


@pytest.fixture(scope="module")
def clustered():
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(60, 32, generator=g)
    return unit(centres[torch.randint(60, (3000,), generator=g)] + 0.5 * torch.randn(3000, 32, generator=g))


@pytest.mark.parametrize("method", ["ivf", "hnsw"])
def test_most_neighbours_are_found_and_the_recall_says_how_many(clustered, method):
    ids = torch.arange(3000)
    exact, how = find_neighbours(clustered, 10, ids=ids, duplicate_above=0.99)
    assert how == {"method": "exact", "recall": 1.0}
    found, how = find_neighbours(clustered, 10, ids=ids, duplicate_above=0.99, method=method)
    share = (exact.rows[:, :, None] == found.rows[:, None]).any(2).float().mean().item()
    assert how["method"] == method and 0.95 < share
    assert how["recall"] == pytest.approx(share, abs=0.02)
    assert not (found.rows == ids[:, None]).any()
    same = found.rows == exact.rows
    assert torch.equal(found.scores[same], exact.scores[same])  # scored exactly


def test_all_lists_together_hold_the_exact_neighbours(clustered, monkeypatch):
    monkeypatch.setattr(inverted_lists, "is_fast_at_bf16", lambda device: False)  # its candidates come without proof
    ids = torch.arange(3000)
    lists = InvertedLists(clustered, probes=10**6)
    options = {"exclude": (ids, ids), "duplicate_above": 0.99}
    found, exact = (
        approximate_top_k(lists, clustered, clustered, 5, **options),
        top_k(clustered, clustered, 5, **options),
    )
    assert torch.equal(found.rows, exact.rows) and torch.equal(found.scores, exact.scores)


def test_the_recall_of_neighbours_half_of_which_are_wrong_is_one_half(clustered):
    ids = torch.arange(3000)
    sample = Sample(clustered, 4, exclude=(ids, ids), duplicate_above=None, size=50)
    assert sample.recall(sample.truth) == 1
    assert sample.recall(torch.cat([sample.truth[:, :2], torch.full((50, 2), -1)], 1)) == 0.5


def test_random_vectors_have_no_clusters_and_the_lists_admit_it():
    rows = unit(torch.randn(4000, 64, generator=torch.Generator().manual_seed(1)))
    _, how = find_neighbours(rows, 10, ids=torch.arange(4000), duplicate_above=0.99, method="ivf")
    assert 0.2 < how["recall"] < 0.95


def test_shards_are_the_whole(clustered, monkeypatch):
    ids, lists = torch.arange(3000), InvertedLists(clustered)
    options = {"exclude": (ids, ids), "duplicate_above": 0.99, "search": partial(approximate_top_k, lists)}
    whole, parts = sharded_top_k(clustered, clustered, 3, **options), []
    monkeypatch.setattr(dist, "gather", lambda value: parts.append(value[0]) or [value])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in range(2):
        monkeypatch.setenv("RANK", str(rank))
        sharded_top_k(clustered, clustered, 3, **options)
    assert (
        torch.cat(parts) == whole.rows
    ).float().mean() > 0.99  # bfloat16 may round products of other shapes otherwise
