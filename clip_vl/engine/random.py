"""Counter-based randomness: every draw is a function of a key, so nothing needs saving and resume is exact.

A key is (seed, purpose, counters...), for example (9595, "answer", epoch, sample) for data and
(9595, "dropout", step, rank) for what is drawn on the device.
"""

import hashlib

import numpy as np


def derive_seed(seed, purpose, *counters):
    """A 63-bit seed from a key; the same on every machine and in every process."""
    key = ":".join(str(part) for part in (int(seed), purpose, *(int(c) for c in counters)))
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1


def numpy_rng(seed, purpose, *counters):
    """A NumPy generator (Philox) for draws made on the host, in any loader worker."""
    return np.random.Generator(np.random.Philox(derive_seed(seed, purpose, *counters)))


def torch_generator(seed, purpose, *counters, device="cpu"):
    """A torch generator on `device` for draws made beside the model."""
    import torch

    return torch.Generator(device=device).manual_seed(derive_seed(seed, purpose, *counters))


def seed_step(seed, step, rank):
    """Key the default generators, which dropout draws from, by (seed, "step", step, rank)."""
    import torch

    torch.manual_seed(derive_seed(seed, "step", step, rank))
