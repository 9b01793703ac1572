"""--dry_run: two updates of the real thing, then what a whole run will need."""

import resource
import time

import torch

from clip_vl.engine import dist


def dry_run(train_one_update, updates, device):
    """Train two updates and print memory and the expected duration of `updates`; the first one warms up.

    Validation is not in the estimate. Memory is this process's and, with loader workers, each worker's largest.
    """
    train_one_update()
    began = time.perf_counter()
    train_one_update()
    seconds = time.perf_counter() - began
    gib = 2**20  # ru_maxrss counts KiB
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / gib
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / gib
    gpu = f", GPU {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB" if device.type == "cuda" else ""
    dist.print0(f"dry run: two updates trained on {device}, nothing saved")
    dist.print0(f"memory: process {host:.1f} GiB, largest loader worker {workers:.1f} GiB{gpu}")
    dist.print0(f"duration: {seconds:.2f} s per update, {updates:,} updates, {seconds * updates / 3600:.2f} hours")
