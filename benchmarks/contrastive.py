"""Claim: InfoNCE of a batch of 16,384 x 512 in tiles is faster than the plain form, on at least 12x less extra memory.

    taskset -c 0,1 .venv/bin/python benchmarks/contrastive.py          about four minutes on 2 cores, 6 GiB of memory
    OMP_NUM_THREADS=1 .venv/bin/python benchmarks/contrastive.py       where other work shares the cores

Forward and backward over unit vectors and a temperature, fp32. The forms take turns; times are medians over rounds;
extra memory is the peak of a fresh process over what it held before, gradients included.
two products  softmax cross entropy of X Y^T and of Y X^T, as open_clip computes it
one product   the same of X Y^T and of its transpose
tiles         clip_vl
"""

import argparse
import ctypes
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from clip_vl.losses.contrastive import symmetric_cross_entropy  # noqa: E402

WIDTH, CLAIM = 512, 12


def two_products(x, y, scale):
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)  # as the loss does
    targets = torch.arange(len(x))
    return (F.cross_entropy(scale * x @ y.T, targets) + F.cross_entropy(scale * y @ x.T, targets)) / 2


def one_product(x, y, scale):
    x, y = F.normalize(x, dim=-1), F.normalize(y, dim=-1)
    logits, targets = scale * x @ y.T, torch.arange(len(x))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


FORMS = {"two products": two_products, "one product": one_product, "tiles": symmetric_cross_entropy}


def unit_pairs(batch):
    generator = torch.Generator().manual_seed(0)
    x, y = F.normalize(torch.randn(2, batch, WIDTH, generator=generator), dim=-1)
    return (
        x.requires_grad_(),
        F.normalize(x + y, dim=-1).detach().requires_grad_(),
        torch.tensor(1 / 0.07).requires_grad_(),
    )


def forward_backward(form, given):
    for tensor in given:
        tensor.grad = None
    loss = FORMS[form](*given)
    loss.backward()
    return loss.item(), [tensor.grad.clone() for tensor in given]


def status(key):
    """A figure of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith(key))
    return int(line.split()[1]) / 1024


def measure_memory(form, batch):
    """MiB by which the process's peak exceeds what it holds once the inputs are there and the code is warm."""
    forward_backward(form, unit_pairs(64))
    given = unit_pairs(batch)
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = status("VmRSS")
    loss = FORMS[form](*given)
    loss.backward()
    print(status("VmHWM") - before)


def memory(form, batch):
    command = [sys.executable, __file__, "--memory-of", form, "--batch", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def compare(batch, rounds):
    given = unit_pairs(batch)
    values = {form: forward_backward(form, given) for form in FORMS}  # warms up, and must agree
    exact_loss, exact = values["two products"]
    loss, found = values["tiles"]
    errors = [abs(loss / exact_loss - 1), *(((a - b).norm() / b.norm()).item() for a, b in zip(found, exact))]
    del values, exact, found
    seconds = {form: [] for form in FORMS}
    for _ in range(rounds):
        for form, times in seconds.items():
            start = time.perf_counter()
            forward_backward(form, given)
            times.append(time.perf_counter() - start)
    del given
    medians = {form: statistics.median(times) for form, times in seconds.items()}
    extra = {form: memory(form, batch) for form in FORMS}
    print(
        f"batch {batch:,} x {WIDTH}: relative difference of the loss and of gradients "
        + " ".join(f"{e:.0e}" for e in errors)
    )
    for form in FORMS:
        faster, smaller = medians[form] / medians["tiles"], extra[form] / extra["tiles"]
        print(f"  {form:12s} {medians[form]:7.2f} s  {extra[form]:6.0f} MiB", end="")
        print("" if form == "tiles" else f"   tiles are {faster:.2f}x as fast, on {smaller:.1f}x less memory")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory-of", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        return measure_memory(args.memory_of, args.batch[0])
    print(
        f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}; claim: {CLAIM}x at 16,384"
    )
    for batch in args.batch:
        compare(batch, args.rounds)


if __name__ == "__main__":
    main()
