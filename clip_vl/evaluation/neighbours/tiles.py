"""Products of float32 features and counts over them, a tile at a time, as fast as the device does them."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch.nn import functional as F

WORD = 8  # flags of one byte each that are added at once
HOST = {torch.gt: np.greater, torch.lt: np.less}  # NumPy's take 0.17 ns a score on a core, torch's 0.43


def product(rows, columns):
    """Inner products of rows (n, D) with columns (m, D) -> (n, m), in float32.

    On a CPU a 1x1 convolution: it is oneDNN's, which is up to twice as fast as MKL's product on AMD's processors.
    """
    if rows.device.type != "cpu" or not torch.backends.mkldnn.is_available() or len(rows) < 2:
        return rows @ columns.T
    pixels = rows.view(1, len(rows), 1, -1).permute(0, 3, 1, 2)  # (1, D, n, 1), channels last: no copy
    scores = F.conv2d(pixels, columns.view(*columns.shape, 1, 1))  # (1, m, n, 1)
    return scores.permute(0, 2, 3, 1).reshape(len(rows), -1)


def count_columns(compare, scores, thresholds):
    """How many scores (n, m) of each column `compare` (torch.gt or torch.lt) with thresholds (m,): int64 (m,).

    Bytes are added to bytes, 255 rows at most: a sum over bool would widen every one of them to int64 first.
    """
    if scores.is_cuda:
        return compare(scores, thresholds).sum(0).cpu().numpy()
    flags, total = np.empty(scores.shape, bool), np.zeros(scores.shape[1], np.int64)
    HOST[compare](scores.numpy(), thresholds.numpy(), out=flags)
    for start in range(0, len(flags), 255):
        total += np.add.reduce(flags[start : start + 255].view(np.uint8), axis=0, dtype=np.uint8)
    return total


def count_rows(compare, scores, thresholds):
    """How many scores (n, m) of each row `compare` with thresholds (n,): int64 (n,). Eight bytes are added as one word,
    255 words at most, so that no byte overflows into the next."""
    n, m = scores.shape
    if scores.is_cuda:
        return compare(scores, thresholds[:, None]).sum(1).cpu().numpy()
    flags = np.empty((n, -(-m // WORD) * WORD), bool)
    flags[:, m:] = False
    HOST[compare](scores.numpy(), thresholds.numpy()[:, None], out=flags[:, :m])
    words, total = flags.view(np.uint64), np.zeros(n, np.int64)
    for start in range(0, words.shape[1], 255):
        total += (
            np.add.reduce(words[:, start : start + 255], axis=1).view(np.uint8).reshape(n, WORD).sum(1, dtype=np.int64)
        )
    return total


@contextlib.contextmanager
def full_precision():
    """Products of float32 in float32, and sums of bfloat16 products too: what the bounds below assume."""
    cuda, before = torch.backends.cuda.matmul, torch.get_float32_matmul_precision()
    reduced = cuda.allow_bf16_reduced_precision_reduction
    torch.set_float32_matmul_precision("highest")
    cuda.allow_bf16_reduced_precision_reduction = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
        cuda.allow_bf16_reduced_precision_reduction = reduced


@contextlib.contextmanager
def one_thread_each(device):
    """A `map` over tasks: on a CPU each has a thread to itself, as several for a small product mostly wait."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield lambda task, *arguments: list(map(task, *arguments))
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield lambda task, *arguments: list(pool.map(task, *arguments))
    finally:
        torch.set_num_threads(threads)
