"""NLVR v1 from scratch and after pre-training on generated scenes, beside the published figures.

It makes no claim: with one seed no start was above the majority class on dev (README.md).

    .venv/bin/python benchmarks/nlvr.py --seeds 1                   # about half an hour on two cores
    .venv/bin/python benchmarks/nlvr.py --archives data/official    # where nlvr_dev.zip and nlvr_test.zip are

Training uses six sevenths of the sentences of the archive `test`; the rest selects the epoch; no sentence is in both.
`dev` is evaluated once per model, at the end. All starts have the same vocabulary, model and fine-tuning flags; only
the initial weights differ, and these are the same for all seeds:

    statement   random, without images
    scratch     random
    scenes      pre-trained on the captions of the built-in set: masked words and matching
    boxes       then on captions of generated boxes in NLVR's style, and on statements of a small grammar about them

The grammar (nlvr_statements.py) was written after reading training sentences; the archives' scene graphs are
not used. Accuracy is over images, as published; its interval is bootstrapped over sentences; a statement is consistent
if the answers for all six orders of its boxes are right. The published figures are also of dev, after training on the
official training set (Suhr et al., ACL 2017). An interrupted run continues.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import re
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from needs import require
from nlvr_boxes import captions, draw_boxes, think_up_boxes
from nlvr_statements import PICTURES, statements

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from clip_vl.datasets.images.collections import COCO_VG, NLVR, image_path, relative_path, size_key  # noqa: E402
from clip_vl.datasets.images.decoding import read_image_size  # noqa: E402
from clip_vl.datasets.official.nlvr import convert_nlvr  # noqa: E402
from clip_vl.engine.random import derive_seed, numpy_rng  # noqa: E402
from clip_vl.engine.readers.text import read_lines  # noqa: E402

MODEL = ["--random_init", "--clip_model_name", "RN-micro", "--llayers", "3", "--visualbert_style", "--input_raw_images",
         "--use_positional_embedding", "--warmup_ratio", "0.05", "--max_length", "32", "--keep_last", "1", "--resume",
         "--report_step", "50", "--bf16"]  # fmt: skip
BERT = {"hidden_size": 128, "num_hidden_layers": 3, "intermediate_size": 256, "initializer_range": 0.08}
SCENES = ["--image_size_min", "96", "--image_size_max", "128"]
BOXES = ["--image_size_min", "48", "--image_size_max", "192"]  # half of the size: a block has ten pixels
PUBLISHED = {"majority class": "55.3", "CNN+RNN": "56.6", "neural module networks": "61 to 66"}
STATEMENTS = 12  # about each set of drawn pictures
TOWERS = 0.6  # share of the sets with towers
TUNE = 7  # one sentence of so many is for tuning
TUNE_SETS = 50  # drawn sets that no model trains on
FIRST_ID = 5_000_001  # of the drawn boxes among the pictures of pre-training


# ---- data


def draw_set(job):
    """Draw four pictures -> (rows of pre-training, an image each; rows of statements in NLVR's form)."""
    root, split, number = job
    rng = random.Random(derive_seed(0, split, number))
    towers = rng.random() < TOWERS
    scenes = [think_up_boxes(rng, towers) for _ in range(PICTURES)]
    described, stated = [], []
    for place, boxes in enumerate(scenes):
        picture, img_id = draw_boxes(boxes), str(FIRST_ID + PICTURES * number + place)  # ids as Visual Genome's
        picture.save(image_path(root, img_id), quality=92)
        picture.save(image_path(root, f"{split}-{number}-{place}-0", NLVR), compress_level=1)
        described.append({"img_id": img_id, "sentf": {"vg": captions(boxes, rng)}, "labelf": {}})
    for which, (text, labels) in enumerate(statements(scenes, rng, towers, STATEMENTS)):
        for place, label in enumerate(labels):
            names = {"identifier": f"{split}-{number}s{which}-{place}-0", "img0": f"{split}-{number}-{place}-0"}
            stated.append(names | {"label": int(label), "sent": text})
    return described, stated


def prepare(root, args):
    """Write the built-in dataset, NLVR v1, generated boxes and one vocabulary into a data root, if missing."""
    if (root / "nlvr" / "boxes.json").exists():
        return
    launch("shapes", "--output", root)
    convert_nlvr(root, [args.archives / f"nlvr_{split}.zip" for split in ("test", "dev")])
    rows = read(root / "nlvr" / "test.json")
    sentences = sorted({sentence_of(row) for row in rows})
    held_out = set(random.Random(0).sample(sentences, len(sentences) // TUNE))
    parts = {
        "train": [row for row in rows if sentence_of(row) not in held_out],
        "tune": [row for row in rows if sentence_of(row) in held_out],
    }
    jobs = [(root, "boxes_tune", number) for number in range(TUNE_SETS)]
    jobs += [(root, "boxes", number) for number in range(TUNE_SETS, TUNE_SETS + args.sets)]
    lists = {"boxes_tune": [], "boxes": []}
    with multiprocessing.Pool(2) as pool:
        for (_, split, _), (described, stated) in zip(jobs, pool.imap(draw_set, jobs, chunksize=16)):
            lists[split] += described
            parts.setdefault(split, []).extend(stated)
    texts = [row["sent"] for row in parts["train"] + parts["boxes"]]
    texts += [text for row in lists["boxes"] for text in row["sentf"]["vg"]]
    set_up_bert(root / "bert-base-uncased", texts)
    add_sizes(root, COCO_VG, {row["img_id"] for rows in lists.values() for row in rows})
    add_sizes(
        root, NLVR, {row["img0"] for rows in (rows, read(root / "nlvr" / "dev.json"), *parts.values()) for row in rows}
    )
    for name, rows in lists.items():
        write(root / "lxmert" / f"{name}.json", rows)
    for name, rows in parts.items():  # nlvr/boxes.json is the last file
        write(root / "nlvr" / f"{name}.json", rows)


def set_up_bert(folder, texts):
    """The words of the texts beside the built-in ones, before any training (others are spelled out), and the sizes."""
    words = (folder / "vocab.txt").read_text().split()
    words += sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text.lower())} - set(words))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    write(folder / "config.json", read(folder / "config.json") | BERT | {"vocab_size": len(words)})


def add_sizes(root, collection, img_ids):
    path = root / collection.sizes
    names = [relative_path(img_id, collection) for img_id in sorted(img_ids)]
    sizes = read(path) if path.exists() else {}
    write(path, sizes | {size_key(name): list(read_image_size(root / name)) for name in names})


def sentence_of(row):
    """dev-1373-0-4 is order 4 of picture 0 of sentence 1373 -> dev-1373."""
    return row["identifier"].rsplit("-", 2)[0]


def read(path):
    return json.loads(path.read_text())


def write(path, value):
    path.write_text(json.dumps(value))


# ---- runs


def launch(program, *flags, threads=2):
    command = ["bash", "scripts/launch.bash", program, "cpu", "0", "1", *map(str, flags)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": str(threads)}, check=True)


def pretrain(root, snap):
    """Words from captions, first of the built-in scenes, then of boxes; then statements about boxes.

    returns: {name of a start: flags that fine-tuning starts with}
    """
    common = [*MODEL, "--data_root", root, "--limit_source", "vqa,gqa,visual7w", "--lr", "1e-3", "--taskMaskLM",
              "--wordMaskRate", "0.4", "--taskMatched", "--exchange_rate", "0.1", "--mask_matched_only"]  # fmt: skip
    scenes, captions, boxes = (snap / f"pretrained_{name}" for name in ("scenes", "captions", "boxes"))
    launch("pretrain", *common, *SCENES, "--output", scenes, "--train", "mscoco_train,mscoco_nominival,vgnococo",
           "--valid", "mscoco_minival", "--batchSize", "128", "--sentences_per_image", "4",
           "--epochs", "4")  # fmt: skip
    launch("pretrain", *common, *BOXES, "--output", captions, "--train", "boxes", "--valid", "boxes_tune",
           "--batchSize", "96", "--sentences_per_image", "3", "--epochs", "2", "--load", scenes / "Epoch04",
           "--not_load_scheduler", "--not_load_adam_optimizer")  # fmt: skip
    launch("nlvr2", *MODEL, *BOXES, "--dataset", "nlvr", "--data_root", root, "--output", boxes, "--train", "boxes",
           "--valid", "boxes_tune", "--batchSize", "120", "--sentences_per_image", "12",
           "--epochs", "5", "--lr", "1e-3", "--loadLXMERT", captions / "Epoch02")  # fmt: skip
    return {"scenes": ["--loadLXMERT", scenes / "Epoch04"], "boxes": ["--load", boxes / "BEST"]}


def fine_tune(job):
    """Train one model and judge dev with it, once -> its folder."""
    root, output, seed, start = job
    flags = [*MODEL, *BOXES, "--dataset", "nlvr", "--data_root", root, "--seed", seed, "--batchSize", "64"]
    flags += ["--question_only"] * ("statement" in output.name)
    launch("nlvr2", *flags, *start, "--output", output, "--train", "train", "--valid", "tune", "--lr", "5e-4",
           "--epochs", "6", threads=1)  # fmt: skip
    if not (output / "dev_predict.csv").exists():
        launch("nlvr2", *flags, "--output", output, "--load", output / "BEST", "--test", "dev", threads=1)
    return output


# ---- the table


def judged(output, truth):
    """(N,) 1 where dev_predict.csv is right, in the order of the truth."""
    said = dict(csv.reader(read_lines(output / "dev_predict.csv")))
    return np.array([(said[row["identifier"]] == "True") == row["label"] for row in truth], dtype=np.float64)


def clustered_interval(scores, clusters, resamples=2000):
    """95 % interval of the mean of scores (N,) when whole clusters (N labels) are drawn."""
    _, cluster = np.unique(clusters, return_inverse=True)
    sums, sizes = np.bincount(cluster, scores), np.bincount(cluster)
    drawn = numpy_rng(0, "bootstrap").integers(len(sums), size=(resamples, len(sums)))
    return np.percentile(sums[drawn].sum(1) / sizes[drawn].sum(1), (2.5, 97.5))


def table(outputs, truth):
    """Print a row for each start; outputs: {start: folders, one a seed}."""
    sentences = [sentence_of(row) for row in truth]
    _, statement = np.unique([row["identifier"].rpartition("-")[0] for row in truth], return_inverse=True)
    print(f"\n{'':24} pictures   95 % interval    consistent   accuracy of each seed")
    for name, folders in outputs.items():
        right = np.array([judged(folder, truth) for folder in folders])  # (seeds, N)
        low, high = clustered_interval(right.mean(0), sentences)
        whole = np.mean([np.bincount(statement, 1 - row) == 0 for row in right])
        each = right.mean(1)
        spread = statistics.stdev(each) if len(each) > 1 else 0.0
        print(f"{name:24} {100 * right.mean():5.1f}      {100 * low:.1f} to {100 * high:.1f}     {100 * whole:5.1f}"
              f"        {' '.join(f'{100 * value:.1f}' for value in each)}   +- {100 * spread:.1f}")  # fmt: skip
    true = np.mean([row["label"] for row in truth])
    print(f"{'always true':24} {100 * true:5.1f}")
    for name, accuracy in PUBLISHED.items():
        print(f"{name + ', published':24} {accuracy}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, default=ROOT / "data" / "nlvr_v1", help="generated if missing")
    parser.add_argument("--archives", type=Path, default=ROOT.parent / "shared" / "data" / "nlvr")
    parser.add_argument("--output", type=Path, default=ROOT / "snap" / "nlvr_v1", help="folder of the runs")
    parser.add_argument("--sets", type=int, default=4000, help="number of sets of four generated images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    args = parser.parse_args()
    if not args.data_root.exists():
        require(args.archives / "nlvr_dev.zip", "pass --archives with the folder of NLVR's archives (data/README.md)")
    began = time.time()
    prepare(args.data_root, args)
    starts = {"statement": [], "scratch": [], **pretrain(args.data_root, args.output)}
    jobs = [(args.data_root, args.output / f"{name}_{seed}", seed, start)
            for name, start in starts.items() for seed in args.seeds]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        folders = list(pool.map(fine_tune, jobs))
    each = len(args.seeds)
    outputs = {name: folders[place * each : (place + 1) * each] for place, name in enumerate(starts)}
    table(outputs, read(args.data_root / "nlvr" / "dev.json"))
    print(f"{(time.time() - began) / 60:.1f} minutes, {os.cpu_count()} cores, seeds {args.seeds}")


if __name__ == "__main__":
    main()
