"""Generated datasets for dual encoders: images with whole descriptions in tables, and pairs in Winoground's form."""

import json
import random

from clip_vl.datasets.lxmert.wordpiece import SPECIAL_TOKENS
from clip_vl.datasets.scenes.descriptions import describe_all, small_scene, twin_scenes
from clip_vl.datasets.scenes.drawing import draw_scene
from clip_vl.datasets.scenes.jobs import run_jobs, write_text
from clip_vl.engine.random import derive_seed, numpy_rng

PAIRS = {"train": 12000, "valid": 500, "test": 500}  # images per split
TWINS = 400  # pairs of images


def make_pair(job):
    """Draw and describe one small scene.

    job:     (folder, path of the image below it, number, seed)
    returns: the row of the table: path, true description, and two false ones, "" where there is none
    """
    root, path, number, seed = job
    rng = random.Random(derive_seed(seed, "pair", number))
    scene = small_scene(rng)
    draw_scene(scene, numpy_rng(seed, "pair grain", number)).save(root / path, quality=92)
    return path, *describe_all(scene, rng)


def build_pairs(root, seed, workers):
    """Write the images and tables of `--size pairs`; returns {split: number of images}."""
    jobs, number = {}, 0
    for split, count in PAIRS.items():
        (root / "images" / split).mkdir(parents=True)
        jobs[split] = [(root, f"images/{split}/{index:06d}.jpg", number + index, seed) for index in range(count)]
        number += count
    rows = run_jobs(make_pair, jobs, workers, "drawing pairs")
    for split, its_rows in rows.items():
        lines = ["filepath\ttitle\tattribute_swap\trelation_swap", *("\t".join(row) for row in its_rows)]
        write_text(root / f"{split}.tsv", "\n".join(lines) + "\n")
    words = sorted({word.strip(",") for its_rows in rows.values() for row in its_rows for word in row[1].split()})
    write_text(root / "vocab.txt", "\n".join([*SPECIAL_TOKENS, ",", *words]) + "\n")
    return PAIRS


def make_twins(job):
    """Draw a small scene and its twin, in which two objects have exchanged an attribute.

    job:     (folder, number, seed)
    returns: the row of examples.jsonl: both images, and captions of the same words
    """
    root, number, seed = job
    rng = random.Random(derive_seed(seed, "twins", number))
    twins = twin_scenes(rng)
    entry = {"id": number}
    for k, (scene, text) in enumerate(twins):
        entry |= {f"image_{k}": f"ex_{number}_img_{k}", f"caption_{k}": text}
        image = draw_scene(scene, numpy_rng(seed, "twin grain", number, k))
        image.save(root / "images" / f"ex_{number}_img_{k}.png")
    return entry | {"tag": "", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": "Object"}


def build_twins(root, seed, workers):
    """Write the images and examples.jsonl of `--size twins`; returns {"twins": number of images}."""
    (root / "images").mkdir(parents=True)
    jobs = {"twins": [(root, number, seed) for number in range(TWINS)]}
    rows = run_jobs(make_twins, jobs, workers, "drawing twins")
    write_text(root / "examples.jsonl", "".join(json.dumps(row) + "\n" for row in rows["twins"]))
    return {"twins": 2 * TWINS}
