"""Claim: two streams over regions learn from LXMERT's losses: VQA is >= 20 points above the questions alone.

    .venv/bin/python -m clip_vl.shapes --output data/shapes   # once
    .venv/bin/python benchmarks/regions_learn.py              # 20 minutes of one core; may be interrupted and run again

Pre-training has the losses of masked words, matching and answers, and of the object, the attribute and the feature of
each region; VQA is then fine-tuned with and without regions. The regions are those of the built-in data, with exact
boxes. As in the published recipe, the annotations of pre-training include the VQA training questions.
"""

import argparse
import json
import resource
import subprocess
from pathlib import Path

from needs import require_shapes

ROOT = Path(__file__).resolve().parent.parent
MODEL = ["--random_init", "--no-visualbert_style", "--llayers", "2", "--xlayers", "2", "--rlayers", "1",
         "--resume", "--batchSize", "128", "--sentences_per_image", "4", "--warmup_ratio", "0.05", "--report_step",
         "50"]  # fmt: skip
TASKS = ["--taskMaskLM", "--taskMatched", "--taskQA", "--taskObjPredict", "--visualLosses", "obj,attr,feat",
         "--objMaskRate", "0.15", "--wordMaskRate", "0.4", "--exchange_rate", "0.1", "--mask_matched_only",
         "--limit_source", "gqa"]  # fmt: skip


def run(program, name, *flags):
    """Run a program to its end, from an interruption if there was one; returns its result.json."""
    output = ROOT / "snap" / program / name
    command = [ROOT / ".venv/bin/python", "-m", f"clip_vl.{program}", "--output", output, *MODEL, *flags]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True)
    return json.loads((output / "result.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", default="data/shapes")
    parser.add_argument("--epochs", type=int, default=3, help="of pre-training")
    parser.add_argument("--lr", default="6e-4")
    args = parser.parse_args()
    require_shapes(ROOT / args.data_root)
    data = ["--data_root", args.data_root, "--lr", args.lr, "--region_dim", "256"]
    data += ["--features", f"{args.data_root}/features/regions.lmdb"]
    pretrained = run("pretrain", "regions", *data, *TASKS, "--epochs", args.epochs)
    start = ["--epochs", "1", "--train", "train,nominival", "--valid", "minival"]
    stem = ROOT / "snap" / "pretrain" / "regions" / f"Epoch{args.epochs:02d}"
    results = {
        "regions": run("vqa", "regions", *data, *start, "--loadLXMERTQA", stem),
        "question only": run("vqa", "regions_question_only", *data, *start, "--question_only"),
    }
    seconds = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(f"\n{seconds.ru_utime + seconds.ru_stime:.0f} CPU seconds")
    for name in ("loss_obj", "loss_attr", "loss_feat", "loss_mlm", "matched_accuracy", "qa_accuracy"):
        print(f"pre-training, {name:17s} {pretrained[name]:6.2f}")
    for name, result in results.items():
        print(f"VQA minival, {name:18s} {result['accuracy']:6.2f}   majority {result['majority_accuracy']:.2f}")
    gain = results["regions"]["accuracy"] - results["question only"]["accuracy"]
    print(f"{'gain':31s} {gain:6.2f}   (claim: at least 20)")


if __name__ == "__main__":
    main()
