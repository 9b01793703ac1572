"""Claim: two processes on two cores train the same samples per second as one process with two threads, within 10 %.

    taskset -c 0,1 .venv/bin/python benchmarks/processes.py --data_root data/shapes     about four minutes on 2 cores
    .venv/bin/python benchmarks/processes.py --paper                                    scaling to 64 GPUs, on paper

The run is the quickstart's stage one, the same 128 samples an update: one process makes them with two threads, or each
of two makes 64 with one thread and they exchange gradients through gloo while the backward pass goes on. Runs take
turns; a rate is the median over the rows of the logs, the first ones left out.
"""

import argparse
import json
import statistics
import subprocess
import tempfile
from pathlib import Path

from needs import require_shapes

ROOT = Path(__file__).resolve().parent.parent
BATCH, WARM_ROWS = 128, 3
FLAGS = """--random_init --clip_model_name RN-tiny --llayers 2 --use_positional_embedding --image_size_min 96
    --image_size_max 128 --sentences_per_image 4 --lr 6e-4 --wordMaskRate 0.4 --exchange_rate 0.1 --mask_matched_only
    --limit_source vqa,gqa,visual7w --valid= --epochs 1 --report_step 8 --max_train_samples 8000 --overwrite""".split()


def samples_per_second(data_root, output, processes):
    """One run -> the rates of the rows of its log."""
    command = ["bash", "scripts/pretrain.bash", "cpu", "unused", 0, processes, *FLAGS, "--data_root", data_root]
    command += ["--output", output, "--batchSize", BATCH // processes]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line) for line in (output / "log.jsonl").read_text().strip().split("\n")]
    return [row["samples"] / row["seconds"] for row in rows[WARM_ROWS:]]


def compare(data_root, rounds):
    rates = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            for processes, values in rates.items():
                values += samples_per_second(data_root, Path(folder, str(processes)), processes)
    one, two = (statistics.median(values) for values in rates.values())
    print(f"one process, two threads   {one:6.0f} samples/s")
    print(f"two processes, one thread  {two:6.0f} samples/s   {two / one:.2f}x (claim: 0.90 or more)")


def efficiency(gpus, images, gflop_per_image, parameters, accumulate, flops, bandwidth, overlap=2 / 3):
    """Share of the time of an update in which `gpus` GPUs compute, by a model of two terms.

    compute:  accumulate * images * gflop_per_image / flops seconds, equal on all
    exchange: a ring moves 2 (N - 1) / N of the float32 gradients through each GPU's link; it hides behind the
              backward pass of the last micro-batch, `overlap` of that micro-batch's time, and the rest is waited for
    """
    micro_batch = images * gflop_per_image * 1e9 / flops
    exchange = 2 * (gpus - 1) / gpus * 4 * parameters / bandwidth
    compute = accumulate * micro_batch
    return compute / (compute + max(0.0, exchange - overlap * micro_batch))


def paper():
    """Stage two of the RN50 recipe: 32 images per GPU and micro-batch, 2 of them an update, 151 M trained weights."""
    recipe = {"images": 32, "gflop_per_image": 222, "parameters": 151e6, "accumulate": 2, "flops": 0.45 * 312e12}
    print("GPUs   200 Gbit/s a GPU   25 Gbit/s a GPU")
    for gpus in (1, 8, 16, 32, 64):
        fast, slow = (100 * efficiency(gpus, **recipe, bandwidth=gbit * 1e9 / 8) for gbit in (200, 25))
        print(f"{gpus:4d}   {fast:14.0f} %   {slow:13.0f} %")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default="data/shapes")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--paper", action="store_true")
    args = parser.parse_args()
    paper() if args.paper else compare(Path(require_shapes(args.data_root)).resolve(), args.rounds)


if __name__ == "__main__":
    main()
