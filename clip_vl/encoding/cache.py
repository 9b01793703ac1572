"""Features of a frozen model, computed once and kept on disk.

They are computed in blocks, each a file that is whole or absent, dealt out to the processes; a killed run leaves its
blocks to the next one. All blocks become one memory-mapped array, which all processes and loader workers share.
"""

import shutil
from pathlib import Path

import numpy as np

from clip_vl.datasets.storage.cache import build_once, is_whole, user_root, writable_root
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_file

NAME = "teacher-features"
BLOCK = 4096  # rows that a killed process can lose


class CachedFeatures:
    """`features[number]` (D,) or `features[numbers]` (n, D), read-only, from a memory map. Pickles as its path."""

    def __init__(self, folder):
        self.folder = Path(folder)
        self.values = np.load(self.folder / "features.npy", mmap_mode="r", allow_pickle=False)
        self.width = self.values.shape[1]

    def __reduce__(self):
        return type(self), (self.folder,)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, numbers):
        return self.values[numbers]


def cached_features(source_digest, tower, count, encode, cache_root, *, dtype="float16", block=BLOCK):
    """`CachedFeatures` of 0 ... count - 1, computed by `encode` where they are not kept yet.

    All processes call it, with the same `cache_root`.
    source_digest: digest of the source
    tower:         JSON that names the model and all else that its features depend on: weights, preprocessing, side
    count:         number of items
    encode:        int64 (n,) numbers -> (n, D) array or tensor; a row of NaN for what cannot be read
    """
    if dtype not in ("float16", "float32"):
        raise ValueError(f"dtype is {dtype!r}; float16 or float32")
    key = digest_of({"source": source_digest, "tower": tower, "count": count, "dtype": dtype, "block": block})
    done = f"{NAME}-{key[:16]}"
    roots = [Path(cache_root), user_root(cache_root)]
    found = next((root / done for root in roots if is_whole(root / done)), None)
    if any(dist.agree(found is None)):
        found = _build(writable_root(cache_root), key, range(0, count, block), count, encode, dtype)
    return CachedFeatures(found)


def _build(root, key, starts, count, encode, dtype):
    parts, finished = root / f"{NAME}-{key[:16]}.parts", root / f"{NAME}-{key[:16]}"
    parts.mkdir(exist_ok=True)
    _encode_blocks(parts, starts, count, encode, dtype)
    dist.barrier()
    if dist.rank() == 0:
        build_once(root, NAME, key, lambda folder: _join(folder, [_path(parts, start) for start in starts]))
        shutil.rmtree(parts, ignore_errors=True)
    dist.barrier()
    return finished


def _path(parts, start):
    return parts / f"{start:012d}.npy"


def _encode_blocks(parts, starts, count, encode, dtype):
    mine = [start for start in starts[dist.rank() :: dist.world_size()] if not _path(parts, start).is_file()]
    for start in dist.progress(mine, "features of the frozen model", True):
        numbers = np.arange(start, min(start + starts.step, count))
        values = encode(numbers)
        values = np.asarray(values.float().cpu() if hasattr(values, "cpu") else values)
        if values.ndim != 2 or len(values) != len(numbers):
            raise ValueError(f"encode gave {values.shape} for {len(numbers)} numbers")
        _save(_path(parts, start), _as(values, dtype))


def _as(values, dtype):
    """The values in their stored type; those that float16 cannot hold are an error."""
    with np.errstate(over="ignore"):
        stored = values.astype(dtype)
    if (np.isinf(stored) & np.isfinite(values)).any():
        raise DataError("the frozen model has features beyond 65,504, which float16 cannot hold; keep them as float32")
    return stored


def _save(path, values):
    try:
        with atomic_file(path) as file:
            np.save(file, values)
    except OSError as error:
        raise UserError(
            f"{path} cannot be written: {error.strerror}; free some disk space and repeat the command"
        ) from None


def _join(folder, paths):
    """One array of all blocks, copied a block at a time: writing to a memory map ends in SIGBUS on a full disk."""
    first = np.load(paths[0], mmap_mode="r", allow_pickle=False)
    lengths = [len(np.load(path, mmap_mode="r", allow_pickle=False)) for path in paths]
    described = np.lib.format.header_data_from_array_1_0(first) | {"shape": (sum(lengths), first.shape[1])}
    with (folder / "features.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, described)
        for path in paths:
            file.write(memoryview(np.load(path, allow_pickle=False)).cast("B"))
