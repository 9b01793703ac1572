"""Claim: with a tenth of the VQA questions, two-stage pre-training beats training from scratch by >= 8 points.

    bash scripts/quickstart.bash                      # once: draws data/shapes and pre-trains
    .venv/bin/python benchmarks/pretraining_helps.py  # fine-tunes both starts with three seeds, six times a minute

Both starts get the same questions, updates and model; only the initial weights differ. As in the published recipe, the
annotations of stage two include the VQA training questions; `--pretrained` takes any other checkpoint.
"""

import argparse
import json
import platform
import statistics
import subprocess
from pathlib import Path

from needs import require, require_shapes

ROOT = Path(__file__).resolve().parent.parent


def accuracy(name, seed, samples, start, data_root, epochs):
    """Fine-tune one model and return its minival accuracy in percent."""
    output = ROOT / "snap" / "vqa" / f"tenth_{name}_{seed}"
    command = ["bash", "scripts/finetune_vqa.bash", "cpu", output, "0", "1", "--data_root", data_root,
               "--random_init", "--clip_model_name", "RN-tiny", "--llayers", "2", "--use_positional_embedding",
               "--image_size_min", "96", "--image_size_max", "128", "--batchSize", "128", "--sentences_per_image", "4",
               "--numWorkers", "0", "--no-fp16", "--warmup_ratio", "0.05", "--report_step", "50", "--overwrite",
               "--epochs", epochs, "--seed", seed, "--max_train_samples", samples, *start]  # fmt: skip
    subprocess.run([*map(str, command)], cwd=ROOT, check=True)
    return json.loads((output / "result.json").read_text())["accuracy"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default="data/shapes")
    parser.add_argument("--pretrained", default="snap/pretrain/quickstart_stage_two/Epoch02")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=4)
    args = parser.parse_args()
    require_shapes(ROOT / args.data_root)
    require(ROOT / f"{args.pretrained}_LXRT.pth", "pre-train it: bash scripts/quickstart.bash")
    questions = json.loads((ROOT / args.data_root / "vqa" / "train.json").read_text())
    tenth = len(questions) // 10
    starts = {
        "scratch": ["--lr", "1e-3"],
        "pretrained": ["--lr", "5e-4", "--loadLXMERTQA", args.pretrained],
    }
    scores = {
        name: [accuracy(name, seed, tenth, start, args.data_root, args.epochs) for seed in args.seeds]
        for name, start in starts.items()
    }
    print(f"\n{tenth} of {len(questions)} questions, {args.epochs} epochs, seeds {args.seeds}, {platform.processor()}")
    for name, values in scores.items():
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        print(f"{name:12s} {statistics.mean(values):6.2f} +- {spread:.2f}   {' '.join(f'{v:.2f}' for v in values)}")
    gains = [b - a for a, b in zip(scores["scratch"], scores["pretrained"])]
    print(
        f"{'gain':12s} {statistics.mean(gains):6.2f}   from {min(gains):.2f} to {max(gains):.2f}   (claim: at least 8)"
    )


if __name__ == "__main__":
    main()
