"""Counter-based random numbers: every draw is a function of a key, so that resume is exact without saved state.

A key is (seed, purpose, counters...), for example (9595, "answer", epoch, sample) for data and
(9595, "dropout", step, rank) for draws on the device.
"""

import hashlib

import numpy as np


def derive_seed(seed, purpose, *counters):
    """A 63-bit seed from a key; the same on every machine and in every process."""
    key = ":".join(str(part) for part in (int(seed), purpose, *(int(c) for c in counters)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def numpy_rng(seed, purpose, *counters):
    """A NumPy generator (Philox) for draws on the host, such as in loader workers."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, *counters)))


def torch_generator(seed, purpose, *counters, device="cpu"):
    """A torch generator on `device`, for draws outside the model."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *counters))


def seed_step(seed, step, rank):
    """Seed the default generators, from which dropout draws, by (seed, "step", step, rank)."""
    import torch

    torch.manual_seed(derive_seed(seed, "step", step, rank))
