"""Neighbours are those of brute force, with exclusions and ties, whatever the blocks, dtype and processes."""

import numpy as np
import pytest
import torch

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.evaluation.neighbours import exact as neighbours
from clip_vl.evaluation.neighbours.exact import sharded_top_k, top_k


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Several blocks, and a rest, from a few hundred rows."""
    monkeypatch.setattr(neighbours, "KEY_BLOCK", 150)
    monkeypatch.setattr(neighbours, "QUERY_BLOCK", {"cpu": 48})
    monkeypatch.setattr(neighbours, "GROUP", 4)


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=1)


def clustered(n, D=32, spread=0.5, seed=0):
    g = torch.Generator().manual_seed(seed)
    centres = torch.randn(max(1, n // 20), D, generator=g)
    return unit(centres[torch.randint(len(centres), (n,), generator=g)] + spread * torch.randn(n, D, generator=g) + 0.5)


def brute(queries, keys, k, ids=None, above=np.inf):
    """All float64 scores, sorted."""
    scores = queries.numpy().astype(np.float64) @ keys.numpy().astype(np.float64).T
    if ids is not None:
        scores[ids[0].numpy()[:, None] == ids[1].numpy()[None]] = -np.inf
    scores[scores > above] = -np.inf
    scores = scores.astype(np.float32)  # products of equal vectors differ in the last bits of float64
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.take_along_axis(scores, rows, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n, N, k", [(500, 500, 10), (77, 301, 3), (5, 40, 39), (1, 1000, 1)])
def test_neighbours_are_those_of_brute_force(dtype, n, N, k):
    keys = clustered(N)
    queries = keys[:n]
    ids = torch.arange(n), torch.arange(N)
    found = top_k(queries, keys, k, exclude=ids, dtype=dtype)
    rows, scores = brute(queries, keys, k, ids)
    assert np.array_equal(found.rows.numpy(), rows)
    assert np.allclose(found.scores.numpy(), scores, atol=1e-6)


def test_random_vectors_agree_with_flat_faiss():
    faiss = pytest.importorskip("faiss")
    keys = unit(torch.randn(900, 64, generator=torch.Generator().manual_seed(1)))
    index = faiss.IndexFlatIP(64)
    index.add(keys.numpy())
    scores, rows = index.search(keys.numpy(), 6)  # the first is the query itself
    found = top_k(keys, keys, 5, exclude=(torch.arange(900), torch.arange(900)), dtype=torch.bfloat16)
    assert np.array_equal(found.rows.numpy(), rows[:, 1:])
    assert np.allclose(found.scores.numpy(), scores[:, 1:], atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_rounding_of_candidates_changes_no_result_where_scores_are_closer_than_bfloat16_can_tell(dtype):
    """Two hundred keys whose scores lie between 0.999 and 1, where bfloat16 has two values."""
    g = torch.Generator().manual_seed(2)
    tight = unit(torch.ones(200, 32) + 2e-2 * torch.randn(200, 32, generator=g))
    keys = torch.cat([clustered(200), tight])
    found = top_k(tight[:20], keys, 5, dtype=dtype)
    rows, scores = brute(tight[:20], keys, 5)
    assert np.allclose(found.scores.numpy(), scores, atol=2e-7)
    assert np.array_equal(found.rows.numpy(), rows)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_ties_are_in_the_order_of_rows_and_itself_is_excluded_by_id(dtype):
    """Every row is there 50 times; a query's own row is left out, and the first hit is not just dropped."""
    keys = unit(torch.randn(8, 16, generator=torch.Generator().manual_seed(3))).repeat(50, 1)  # row i is row i % 8
    ids = torch.arange(400), torch.arange(400)
    found = top_k(keys, keys, 4, exclude=ids, dtype=dtype)
    for row in range(400):
        others = [other for other in range(row % 8, 400, 8) if other != row][:4]
        assert found.rows[row].tolist() == others


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("copies", [2, 60])
def test_duplicates_are_passed_over_and_counted(dtype, copies):
    base = clustered(15, spread=2.0)
    keys = base.repeat(copies, 1)
    ids = torch.arange(len(keys)), torch.arange(len(keys))
    found = top_k(keys, keys, 3, exclude=ids, duplicate_above=0.99, dtype=dtype)
    rows, _ = brute(keys, keys, 3, ids, above=0.99)
    assert np.array_equal(found.rows.numpy(), rows)
    assert (found.duplicates == copies - 1).all()


def test_rows_of_one_id_are_no_neighbours_however_they_look():
    keys = clustered(120)
    ids = torch.arange(120) // 3
    found = top_k(keys, keys, 5, exclude=(ids, ids))
    rows, _ = brute(keys, keys, 5, (ids, ids))
    assert np.array_equal(found.rows.numpy(), rows)
    assert not (ids[found.rows] == ids[:, None]).any()


def test_where_duplicates_leave_too_few_the_rest_is_marked():
    keys = unit(torch.cat([torch.ones(50, 8), torch.eye(8)[:2]]))
    found = top_k(keys, keys, 4, exclude=(torch.arange(52), torch.arange(52)), duplicate_above=0.99)
    assert found.rows[0].tolist() == [50, 51, -1, -1]
    assert found.scores[0].tolist()[2:] == [-np.inf] * 2
    assert found.duplicates[0] == 49


def test_too_many_neighbours_are_refused():
    keys = clustered(10)
    with pytest.raises(UserError, match="10 neighbours of 10 rows cannot be: choose between 1 and 9"):
        top_k(keys, keys, 10, exclude=(torch.arange(10), torch.arange(10)))
    with pytest.raises(UserError, match="between 1 and 10"):
        top_k(keys, keys, 0)


@pytest.mark.parametrize("world", [2, 3])
def test_shards_make_up_the_whole_to_the_last_bit(monkeypatch, world):
    keys, ids = clustered(211), torch.arange(211)
    whole = top_k(keys, keys, 5, exclude=(ids, ids))
    parts = []
    monkeypatch.setattr(dist, "gather", lambda value: parts.append(value) or [value])
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(world))
        sharded_top_k(keys, keys, 5, exclude=(ids, ids))
    for tensor, shards in zip(whole, zip(*parts)):
        assert torch.equal(tensor, torch.cat(shards))


def test_memory_stays_far_below_all_scores(monkeypatch):
    """4,000 rows have 64 MB of scores; the search holds less than a tenth of it at once."""
    monkeypatch.undo()
    monkeypatch.setattr(neighbours, "KEY_BLOCK", 1000)
    keys = clustered(4000, D=8)
    largest = 0
    grouped = neighbours.grouped_largest

    def spy(scores, count):
        nonlocal largest
        largest = max(largest, scores.numel() * scores.element_size())
        return grouped(scores, count)

    monkeypatch.setattr(neighbours, "grouped_largest", spy)
    top_k(keys, keys, 5)
    assert 0 < largest < 6.4e6
