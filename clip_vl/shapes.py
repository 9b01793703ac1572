"""The built-in data set: drawn scenes with captions, questions and answers, in exactly the formats of the real data.

    python -m clip_vl.shapes --output data/shapes                       about 7,600 pictures, half a minute on 2 cores
    python -m clip_vl.shapes --output data/shapes_smoke --size smoke    a hundredth of it, for trying things out
    python -m clip_vl.shapes --output data/shapes_pairs --size pairs    13,000 pictures with whole descriptions, as TSV
    python -m clip_vl.shapes --output data/shapes_twins --size twins    400 pairs of pictures in Winoground's form

Writes a data root (data/README.md): LXMERT and VQA JSON, the official VQA v2 files of minival, answer tables, COCO and
Visual Genome image folders, image sizes, a Karpathy split, a small BERT vocabulary and configuration, and the scene
graphs; features/regions.lmdb, what a detector that makes no mistake would find in the COCO and Visual Genome pictures;
and pictures, annotations, answers and image sizes of GQA, SNLI-VE and NLVR2. For dual encoders, `--size pairs` writes
train, valid and test.tsv (filepath, title) and, in the last two columns, false descriptions of the same words. The same
seed gives the same bytes. A finished set is recognised, an interrupted one is drawn again.
"""

from dataclasses import dataclass

from clip_vl.flags.parser import flag, parse


@dataclass
class ShapesFlags:
    """Built-in data set"""

    output: str = flag("data/shapes", "Data root to write.")
    size: str = flag("full", "How many pictures.", choices=["full", "smoke", "pairs", "twins"])
    seed: int = flag(0, "Seed of every scene and sentence.")
    workers: int = flag(2, "Processes that draw.")


FLAGS = parse(ShapesFlags, __doc__) if __name__ == "__main__" else None

import json
import multiprocessing
import random
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from clip_vl.datasets.features.store import write_features
from clip_vl.datasets.images.collections import relative_path
from clip_vl.datasets.lxmert.wordpiece import SPECIAL_TOKENS
from clip_vl.datasets.scenes.descriptions import describe_all, small_scene, twin_scenes
from clip_vl.datasets.scenes.drawing import draw_scene
from clip_vl.datasets.scenes.files import picture_files, scene_lists, task_files, vocabulary
from clip_vl.datasets.scenes.regions import WIDTH, scene_regions
from clip_vl.datasets.scenes.scene import scene_to_json, think_up_scene
from clip_vl.datasets.scenes.sentences import annotate, captions, questions, regions
from clip_vl.datasets.scenes.tasks import MAKERS
from clip_vl.engine.dist import run_program
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import temporary_name
from clip_vl.engine.random import derive_seed, numpy_rng
from clip_vl.engine.readers.json_files import read_object
from clip_vl.engine.signals import start_pool_worker
from clip_vl.evaluation.vqa_score import soft_scores

VERSION = 4  # raise it when the same seed gives other files


class Split(NamedTuple):
    """A file of the LXMERT or VQA annotations and the pictures it is about."""

    name: str  # lxmert/<name>.json; vqa/<name without mscoco_>.json
    pattern: str  # of the image ids
    pictures: int  # full size
    smoke: int
    sentences: dict  # source -> how many per picture


COCO = {"mscoco": 5, "vg": 3, "vqa": 12, "gqa": 4}
SPLITS = (
    Split("mscoco_train", "COCO_train2014_{:012d}", 2800, 40, COCO),
    Split("mscoco_nominival", "COCO_val2014_{:012d}", 400, 12, COCO),
    Split("mscoco_minival", "COCO_val2014_{:012d}", 400, 12, COCO),
    Split("test", "COCO_test2015_{:012d}", 150, 8, {"vqa": 12}),
    Split("vgnococo", "{}", 1000, 16, {"vg": 8, "gqa": 4, "visual7w": 4}),
)
TASKS = {  # task -> split -> (full size, smoke), in pictures or, for nlvr2, sets of eight
    "gqa": {"train": (400, 16), "valid": (60, 8), "testdev": (100, 8), "submit": (30, 8)},
    "snli_ve": {"train": (600, 16), "dev": (80, 8), "test": (120, 8)},
    "nlvr2": {"train": (140, 2), "dev": (16, 1), "test1": (24, 1)},
}
PAIRS = {"train": 12000, "valid": 500, "test": 500}
TWINS = 400  # pairs of pictures
QUESTION_SOURCES = ("vqa", "gqa", "visual7w")
BERT = {
    "model_type": "bert", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32, "initializer_range": 0.06, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip


def make_picture(job):
    """Think up, draw and describe one picture; everything follows from (seed, number).

    job:     (folder, img_id, number, seed, sentences per source)
    returns: the record of `scene_files`, and the regions of the picture
    """
    root, img_id, number, seed, wanted = job
    rng = random.Random(derive_seed(seed, "scene", number))
    scene = think_up_scene(rng)
    picture = draw_scene(scene, numpy_rng(seed, "grain", number))
    picture.save(root / relative_path(img_id), quality=92)
    record = {"img_id": img_id, "scene": scene_to_json(img_id, scene), "regions": scene_regions(scene, picture)}
    record |= {"sentences": {}, "questions": {}}
    for source, count in wanted.items():
        if source in QUESTION_SOURCES:
            asked = questions(scene, rng, count)
            answers = [annotate(q.answer, rng) if source == "vqa" else [q.answer] for q in asked]
            labels = [soft_scores(given) if source == "vqa" else {given[0]: 1.0} for given in answers]
            record["questions"][source] = list(zip((q._asdict() for q in asked), answers, labels))
            record["sentences"][source] = [q.text for q in asked]
        else:
            record["sentences"][source] = (captions if source == "mscoco" else regions)(scene, rng, count)
    return record


def make_unit(job):
    """Think up, draw and describe one unit of another task: a picture of GQA or SNLI-VE, a set of eight of NLVR2.

    job:     (folder, task, split, number, seed)
    returns: dict with the scenes' JSON by path under the folder, and the rows of the annotation file
    """
    root, task, split, number, seed = job
    pictures, rows = MAKERS[task](split, number, random.Random(derive_seed(seed, task, number)))
    for place, (path, (_, scene)) in enumerate(pictures.items()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        draw_scene(scene, numpy_rng(seed, f"{task} grain", number, place)).save(root / path, quality=92)  # PNG has none
    return {"scenes": {path: scene_to_json(*picture) for path, picture in pictures.items()}, "rows": rows}


def make_pair(job):
    """Think up, draw and describe one small scene.

    job:     (folder, path of the picture below it, number, seed)
    returns: the row of the table: path, true description, and two false ones, "" where there is none
    """
    root, path, number, seed = job
    rng = random.Random(derive_seed(seed, "pair", number))
    scene = small_scene(rng)
    draw_scene(scene, numpy_rng(seed, "pair grain", number)).save(root / path, quality=92)
    return path, *describe_all(scene, rng)


def build_pairs(root, seed, workers):
    """Pictures and tables of `--size pairs` -> pictures per split."""
    jobs, number = {}, 0
    for split, count in PAIRS.items():
        (root / "images" / split).mkdir(parents=True)
        jobs[split] = [(root, f"images/{split}/{place:06d}.jpg", number + place, seed) for place in range(count)]
        number += count
    rows = draw(make_pair, jobs, workers, "drawing pairs")
    for split, its_rows in rows.items():
        lines = ["filepath\ttitle\tattribute_swap\trelation_swap", *("\t".join(row) for row in its_rows)]
        write(root / f"{split}.tsv", "\n".join(lines) + "\n")
    words = sorted({word.strip(",") for its_rows in rows.values() for row in its_rows for word in row[1].split()})
    write(root / "vocab.txt", "\n".join([*SPECIAL_TOKENS, ",", *words]) + "\n")
    return PAIRS


def make_twins(job):
    """Draw a small scene and its twin, in which two things have exchanged an attribute.

    job:     (folder, number, seed)
    returns: the line of examples.jsonl: both pictures, and captions of the same words
    """
    root, number, seed = job
    rng = random.Random(derive_seed(seed, "twins", number))
    twins = twin_scenes(rng)
    entry = {"id": number}
    for k, (scene, text) in enumerate(twins):
        entry |= {f"image_{k}": f"ex_{number}_img_{k}", f"caption_{k}": text}
        picture = draw_scene(scene, numpy_rng(seed, "twin grain", number, k))
        picture.save(root / "images" / f"ex_{number}_img_{k}.png")
    return entry | {"tag": "", "secondary_tag": "", "num_main_preds": 1, "collapsed_tag": "Object"}


def build_twins(root, seed, workers):
    """Pictures and examples.jsonl of `--size twins` -> how many pairs."""
    (root / "images").mkdir(parents=True)
    rows = draw(make_twins, {"twins": [(root, number, seed) for number in range(TWINS)]}, workers, "drawing twins")
    write(root / "examples.jsonl", "".join(json.dumps(row) + "\n" for row in rows["twins"]))
    return {"twins": 2 * TWINS}


def picture_jobs(root, size, seed):
    """{split: arguments of make_picture}. Image numbers run through the splits, so ids never meet."""
    jobs, number = {}, 0
    for split in SPLITS:
        jobs[split.name] = []
        for _ in range(split.smoke if size == "smoke" else split.pictures):
            number += 1
            job = (root, split.pattern.format(number), number, seed, split.sentences)
            jobs[split.name].append(job)
            (root / relative_path(job[1])).parent.mkdir(parents=True, exist_ok=True)
    return jobs


def task_jobs(root, size, seed):
    """{(task, split): arguments of make_unit}; numbers run through the splits of a task."""
    jobs = {}
    for task, splits in TASKS.items():
        number = 0
        for split, (full, smoke) in splits.items():
            count = smoke if size == "smoke" else full
            jobs[task, split] = [(root, task, split, number + place, seed) for place in range(count)]
            number += count
    return jobs


def draw(make, jobs, workers, what):
    """{key: [make(job) for its jobs]}, with a progress bar over all of them."""
    done = {}
    with (
        multiprocessing.Pool(workers, start_pool_worker) as pool,
        tqdm(total=sum(map(len, jobs.values())), desc=what, disable=not sys.stderr.isatty()) as bar,
    ):
        for key, its_jobs in jobs.items():
            done[key] = []
            for result in pool.imap(make, its_jobs, chunksize=8):
                done[key].append(result)
                bar.update()
    return done


def write_files(root, records, drawn, scenes):
    """Everything but the pictures."""
    words = vocabulary(records, drawn)
    files = picture_files(records) | task_files(drawn)
    files["bert-base-uncased/config.json"] = BERT | {"vocab_size": len(words)}
    for name, value in files.items():
        write(root / name, json.dumps(value))
    for name, rows in scenes.items():
        write(root / "scenes" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write(root / "bert-base-uncased" / "vocab.txt", "\n".join(words) + "\n")
    with write_features(root / "features" / "regions.lmdb", {"kind": "regions", "width": WIDTH}) as store:
        for record in (record for split in records.values() for record in split):
            store.put(record["img_id"], record["regions"])


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def build_tasks(root, seed, workers, size):
    """Everything of the sizes full and smoke -> pictures per split."""
    records = draw(make_picture, picture_jobs(root, size, seed), workers, "drawing")
    drawn = draw(make_unit, task_jobs(root, size, seed), workers, "drawing tasks")
    scenes = scene_lists(records, drawn)
    write_files(root, records, drawn, scenes)
    return {name: len(rows) for name, rows in scenes.items()}


def build(output, size="full", seed=0, workers=2):
    """Write the data set as a folder `output`, or leave it alone when it is there already."""
    output = Path(output)
    made_as = {"seed": seed, "size": size, "version": VERSION}
    if output.exists():
        description = output / "shapes.json"
        before = read_object(description) or {}
        if made_as.items() <= before.items():
            print(f"{output} is there already")
            return
        raise UserError(f"{output} holds something else than {made_as}; remove it or choose another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in output.parent.glob(f".tmp-*-{output.name}"):
        shutil.rmtree(abandoned)
    temporary = temporary_name(output)
    try:
        temporary.mkdir()
        if size == "pairs":
            counts = build_pairs(temporary, seed, workers)
        elif size == "twins":
            counts = build_twins(temporary, seed, workers)
        else:
            counts = build_tasks(temporary, seed, workers, size)
        write(temporary / "shapes.json", json.dumps(made_as | {"pictures": counts}))
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    print(f"{output}: {sum(counts.values())} pictures")


def main(args):
    build(args.output, args.size, args.seed, args.workers)


if __name__ == "__main__":
    run_program(main, FLAGS)
