"""Claim: recall of 5,000 images and 25,000 texts x 512 is 40x faster than CLIP_benchmark's, on an eighth of its memory,
at equal numbers; and 113,000 x 567,000 is ranked exactly without the matrix of scores (239 GiB) being there.

    pip install --no-deps --target /tmp/clip_benchmark clip-benchmark==1.6.2
    taskset -c 0,1 .venv/bin/python benchmarks/retrieval.py --clip_benchmark /tmp/clip_benchmark
    .venv/bin/python benchmarks/retrieval.py --large                 113,000 x 567,000: six minutes at 200 GFLOP/s
    .venv/bin/python benchmarks/retrieval.py --large --share 0.02    some of its images, the time of all extrapolated

Unit vectors at random, texts with a part of their image's. Recall at 1, 5 and 10 both ways, fp32. The two take turns,
and so do the products alone, which no exact ranking is faster than; times are medians over rounds; memory is the peak
of a fresh process over what it held with the features before.
"""

import argparse
import ctypes
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from needs import require
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from clip_vl.evaluation.neighbours.tiles import product  # noqa: E402
from clip_vl.evaluation.recall import WAYS, feature_ranks  # noqa: E402

WIDTH, KS, BATCH = 512, (1, 5, 10), 64
FASTER, SMALLER = 40, 8


def pairs(images, texts):
    """Features of the images and of their texts, and the image of each text."""
    generator = torch.Generator().manual_seed(0)
    x = F.normalize(torch.randn(images, WIDTH, generator=generator), dim=1)
    owner = np.arange(texts) * images // texts
    y = torch.randn(texts, WIDTH, generator=generator)
    for start in range(0, texts, 4096):  # in parts, which a large set has no room for otherwise
        part = slice(start, start + 4096)
        y[part] = F.normalize(F.normalize(y[part], dim=1) + 0.15 * x[torch.from_numpy(owner[part])], dim=1)
    return x, y, owner


def theirs(x, y, owner):
    """What `clip_benchmark.metrics.zeroshot_retrieval.evaluate` does with the features."""
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    scores = y @ x.t()
    positive = torch.zeros_like(scores, dtype=bool)
    positive[torch.arange(len(scores)), torch.from_numpy(owner)] = True
    found = []
    for s, p in ((scores, positive), (scores.T, positive.T)):
        for k in KS:
            found.append((batchify(recall_at_k, s, p, BATCH, "cpu", k=k) > 0).float().mean().item())
    return found


def ours(x, y, owner):
    ranks = feature_ranks(x, y, owner)
    return [float(np.mean(getattr(ranks, way)[1] <= k)) for way in WAYS for k in KS]


def products(x, y, owner):
    """The float32 products alone, by which every exact ranking is bound."""
    for rows in x.split(512):
        for columns in y.split(1024):
            product(rows, columns)


FORMS = {"CLIP_benchmark": theirs, "clip_vl": ours}


def status(key):
    """A figure of /proc/self/status in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().split("\n") if line.startswith(key))
    return int(line.split()[1]) / 1024


def peak_of(run, given):
    """(result, seconds, MiB) of a call: how far the process's peak exceeds what it holds before."""
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before, start = status("VmRSS"), time.perf_counter()
    result = run(*given)
    return result, time.perf_counter() - start, status("VmHWM") - before


def memory(form, args):
    command = [sys.executable, __file__, "--memory_of", form, "--images", args.images, "--texts", args.texts,
               "--clip_benchmark", args.clip_benchmark]  # fmt: skip
    done = subprocess.run([*map(str, command)], check=True, capture_output=True, text=True)
    return float(done.stdout)


def compare(args):
    given = pairs(args.images, args.texts)
    values = {form: run(*given) for form, run in FORMS.items()}  # warms up, and must agree
    print("recall", " ".join(f"{value:.5f}" for value in values["clip_vl"]))
    difference = max(abs(a - b) for a, b in zip(*values.values()))
    timed = FORMS | {"products alone": products}
    seconds = {form: [] for form in timed}
    for _ in range(args.rounds):
        for form, run in timed.items():
            start = time.perf_counter()
            run(*given)
            seconds[form].append(time.perf_counter() - start)
    del given
    medians = {form: statistics.median(times) for form, times in seconds.items()}
    extra = {form: memory(form, args) for form in FORMS}
    for form in FORMS:
        print(f"  {form:15s} {medians[form]:7.2f} s  {extra[form]:6.0f} MiB")
    faster, smaller = (values["CLIP_benchmark"] / values["clip_vl"] for values in (medians, extra))
    bound = medians["CLIP_benchmark"] / medians["products alone"]
    print(f"  products alone  {medians['products alone']:7.2f} s, so at most {bound:.0f}x faster in fp32 here")
    size = f"{args.images:,} x {args.texts:,} x {WIDTH}"
    print(f"{size}: {faster:.1f}x faster (claim {FASTER}), on {smaller:.1f}x less memory (claim {SMALLER})")
    print(f"largest difference of a recall: {difference:.1e}")


def large(args):
    """113,000 images against 567,000 texts, or a share of the images with their texts against all others' features."""
    images, texts = 113_000, 567_000
    part = max(1, int(images * args.share))
    x, y, owner = pairs(images, texts)
    x, own = x[:part], owner[owner < part]
    rest = len(owner) - len(own)
    if rest:  # the other images' texts compete as texts of one more image
        x, owner = torch.cat([x, torch.zeros(1, WIDTH)]), np.concatenate([own, np.full(rest, part)])
    ranks, seconds, mib = peak_of(feature_ranks, (x, y, owner))
    ways = (ranks.image_to_text[1][:part], "image to text"), (ranks.text_to_image[1][: len(own)], "text to image")
    for rank, way in ways[: 1 if rest else 2]:
        print(f"{way}: recall at 1 {100 * np.mean(rank <= 1):.2f} %, mean rank {rank.mean():.1f}")
    features, matrix = (x.nbytes + y.nbytes) / 2**20, len(x) * texts * 4 / 2**20
    print(f"{len(x):,} x {texts:,} x {WIDTH}: {seconds:.1f} s, {mib:.0f} MiB beside {features:,.0f} MiB of features")
    print(f"the matrix of scores would have {matrix:,.0f} MiB")
    if rest:
        print(f"extrapolated from {len(x) / images:.3f} of the images, not measured: {seconds * images / len(x):.0f} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clip_benchmark", default="/tmp/clip_benchmark", help="Folder that holds the package.")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--texts", type=int, default=25000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--large", action="store_true", help="113,000 x 567,000 instead.")
    parser.add_argument("--share", type=float, default=1.0, help="Share of the images that --large takes.")
    parser.add_argument("--memory_of", choices=FORMS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if not args.large:
        require(args.clip_benchmark, "the first command in the head of this file installs the package to compare with")
    sys.path.insert(0, args.clip_benchmark)
    if args.memory_of:
        FORMS[args.memory_of](*pairs(256, 1024))
        return print(peak_of(FORMS[args.memory_of], pairs(args.images, args.texts))[2])
    print(f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    large(args) if args.large else compare(args)


if __name__ == "__main__":
    main()
