"""Features of many things, computed by all processes, each thing by one of them."""

import numpy as np
import torch

from clip_vl.engine import dist


@torch.no_grad()
def collect(encode, numbered_batches, autocast):
    """`encode(batch)` of every process's batches, on all processes, float32 (N, D) in the order of their numbers.

    numbered_batches: (integers (b,), batch) pairs of this process; together the numbers are N different ones
    encode:           batch -> (b, D)
    """
    mine = []
    for numbers, batch in numbered_batches:
        with autocast:
            mine.append((np.asarray(numbers), encode(batch).float().cpu().numpy()))
    parts = [part for parts in dist.gather(mine) for part in parts]
    order = np.argsort(np.concatenate([numbers for numbers, _ in parts]), kind="stable")
    return torch.from_numpy(np.concatenate([features for _, features in parts])[order])
