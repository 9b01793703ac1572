"""Counts against a plain sum, at sizes where bytes would overflow; products against torch's."""

import pytest
import torch

from clip_vl.evaluation.neighbours.tiles import count_columns, count_rows, product


@pytest.mark.parametrize("n, m", [(1, 1), (255, 2048), (700, 13), (3, 2049)])
def test_counts_equal_a_plain_sum_where_all_are_true_and_where_some_are(n, m):
    scores = torch.rand(n, m, generator=torch.Generator().manual_seed(n))
    for level in (-1.0, 0.5):
        flags = scores > level
        assert count_columns(torch.gt, scores, torch.full((m,), level)).tolist() == flags.sum(0).tolist()
        assert count_rows(torch.gt, scores, torch.full((n,), level)).tolist() == flags.sum(1).tolist()


@pytest.mark.parametrize("n, m", [(1, 3), (2, 1), (33, 65)])
def test_the_product_is_that_of_torch(n, m):
    rows, columns = torch.randn(n, 48), torch.randn(m, 48)
    assert torch.allclose(product(rows, columns), rows @ columns.T, atol=1e-5)
    assert torch.allclose(product(rows[:, ::2], columns[:, ::2]), rows[:, ::2] @ columns[:, ::2].T, atol=1e-5)
