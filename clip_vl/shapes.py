"""Generate the built-in dataset: drawn scenes with captions, questions and answers, in the formats of the real data.

    python -m clip_vl.shapes --output data/shapes                       about 7,600 images, half a minute on 2 cores
    python -m clip_vl.shapes --output data/shapes_smoke --size smoke    a hundredth of them, for quick trials
    python -m clip_vl.shapes --output data/shapes_pairs --size pairs    13,000 images with whole descriptions, as TSV
    python -m clip_vl.shapes --output data/shapes_twins --size twins    400 pairs of images in Winoground's form

The sizes full and smoke write a data root (data/README.md): LXMERT and VQA JSON, the official VQA v2 files of minival,
answer tables, COCO and Visual Genome image folders, image sizes, a Karpathy split, a small BERT vocabulary and
configuration, and scene graphs; features/regions.lmdb with exact region features of the COCO and Visual Genome images;
and images, annotations, answers and image sizes of GQA, SNLI-VE and NLVR2. The size pairs, for dual encoders, writes
train.tsv, valid.tsv and test.tsv: filepath, title, and two false descriptions with the same words.

The same seed gives the same bytes. A finished dataset is kept; an interrupted one is generated again.
"""

from dataclasses import dataclass

from clip_vl.flags.parser import flag, parse


@dataclass
class ShapesFlags:
    """Built-in dataset"""

    output: str = flag("data/shapes", "Folder to write; a data root with the sizes full and smoke.")
    size: str = flag("full", "Number of images and form of the dataset.", choices=["full", "smoke", "pairs", "twins"])
    seed: int = flag(0, "Seed of all scenes and sentences.")
    workers: int = flag(2, "Number of processes that draw images.")


FLAGS = parse(ShapesFlags, __doc__) if __name__ == "__main__" else None

import json
import random
import shutil
from pathlib import Path
from typing import NamedTuple

from clip_vl.datasets.features.store import write_features
from clip_vl.datasets.images.collections import relative_path
from clip_vl.datasets.scenes.drawing import draw_scene
from clip_vl.datasets.scenes.files import data_root_files, scene_lists, task_files, vocabulary
from clip_vl.datasets.scenes.jobs import run_jobs, write_text
from clip_vl.datasets.scenes.regions import WIDTH, scene_regions
from clip_vl.datasets.scenes.scene import scene_to_json, random_scene
from clip_vl.datasets.scenes.sentences import annotate, captions, questions, regions
from clip_vl.datasets.scenes.tasks import MAKERS
from clip_vl.engine.dist import run_program
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import temporary_name
from clip_vl.engine.random import derive_seed, numpy_rng
from clip_vl.engine.readers.json_files import read_object
from clip_vl.evaluation.vqa_score import soft_scores

VERSION = 4  # raise it when the same seed gives other files


class Split(NamedTuple):
    """A file of LXMERT or VQA annotations and the images that it annotates."""

    name: str  # lxmert/<name>.json; vqa/<name without mscoco_>.json
    pattern: str  # of the image ids
    images: int  # full size
    smoke: int
    sentences: dict  # source -> number per image


COCO = {"mscoco": 5, "vg": 3, "vqa": 12, "gqa": 4}
SPLITS = (
    Split("mscoco_train", "COCO_train2014_{:012d}", 2800, 40, COCO),
    Split("mscoco_nominival", "COCO_val2014_{:012d}", 400, 12, COCO),
    Split("mscoco_minival", "COCO_val2014_{:012d}", 400, 12, COCO),
    Split("test", "COCO_test2015_{:012d}", 150, 8, {"vqa": 12}),
    Split("vgnococo", "{}", 1000, 16, {"vg": 8, "gqa": 4, "visual7w": 4}),
)
TASK_SIZES = {  # task -> split -> (full size, smoke), in images or, for nlvr2, sets of eight
    "gqa": {"train": (400, 16), "valid": (60, 8), "testdev": (100, 8), "submit": (30, 8)},
    "snli_ve": {"train": (600, 16), "dev": (80, 8), "test": (120, 8)},
    "nlvr2": {"train": (140, 2), "dev": (16, 1), "test1": (24, 1)},
}
QUESTION_SOURCES = ("vqa", "gqa", "visual7w")
BERT = {
    "model_type": "bert", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32, "initializer_range": 0.06, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip


def make_image(job):
    """Draw and describe one image of COCO or Visual Genome; everything follows from (seed, number).

    job:     (folder, img_id, number, seed, sentences per source)
    returns: the record of the image, as in `scenes.files`
    """
    root, img_id, number, seed, wanted = job
    rng = random.Random(derive_seed(seed, "scene", number))
    scene = random_scene(rng)
    image = draw_scene(scene, numpy_rng(seed, "grain", number))
    image.save(root / relative_path(img_id), quality=92)
    record = {"img_id": img_id, "scene": scene_to_json(img_id, scene), "regions": scene_regions(scene, image)}
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
    """Draw and describe one unit of another task: an image of GQA or SNLI-VE, a set of eight images of NLVR2.

    job:     (folder, task, split, number, seed)
    returns: dict with the scenes' JSON by path under the folder, and the rows of the annotation file
    """
    root, task, split, number, seed = job
    images, rows = MAKERS[task](split, number, random.Random(derive_seed(seed, task, number)))
    for index, (path, (_, scene)) in enumerate(images.items()):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        draw_scene(scene, numpy_rng(seed, f"{task} grain", number, index)).save(root / path, quality=92)  # PNG has none
    return {"scenes": {path: scene_to_json(*image) for path, image in images.items()}, "rows": rows}


def image_jobs(root, size, seed):
    """{split: arguments of make_image}. Image numbers run through the splits, so ids never meet."""
    jobs, number = {}, 0
    for split in SPLITS:
        jobs[split.name] = []
        for _ in range(split.smoke if size == "smoke" else split.images):
            number += 1
            job = (root, split.pattern.format(number), number, seed, split.sentences)
            jobs[split.name].append(job)
            (root / relative_path(job[1])).parent.mkdir(parents=True, exist_ok=True)
    return jobs


def task_jobs(root, size, seed):
    """{(task, split): arguments of make_unit}; numbers run through the splits of a task."""
    jobs = {}
    for task, splits in TASK_SIZES.items():
        number = 0
        for split, (full, smoke) in splits.items():
            count = smoke if size == "smoke" else full
            jobs[task, split] = [(root, task, split, number + index, seed) for index in range(count)]
            number += count
    return jobs


def write_files(root, records, drawn, scenes):
    """Write all files but the images."""
    words = vocabulary(records, drawn)
    files = data_root_files(records) | task_files(drawn)
    files["bert-base-uncased/config.json"] = BERT | {"vocab_size": len(words)}
    for name, value in files.items():
        write_text(root / name, json.dumps(value))
    for name, rows in scenes.items():
        write_text(root / "scenes" / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    write_text(root / "bert-base-uncased" / "vocab.txt", "\n".join(words) + "\n")
    with write_features(root / "features" / "regions.lmdb", {"kind": "regions", "width": WIDTH}) as store:
        for record in (record for split in records.values() for record in split):
            store.put(record["img_id"], record["regions"])


def build_tasks(root, seed, workers, size):
    """Write the data root of the sizes full and smoke; returns {split: number of images}."""
    records = run_jobs(make_image, image_jobs(root, size, seed), workers, "drawing")
    drawn = run_jobs(make_unit, task_jobs(root, size, seed), workers, "drawing tasks")
    scenes = scene_lists(records, drawn)
    write_files(root, records, drawn, scenes)
    return {name: len(rows) for name, rows in scenes.items()}


def build(output, size="full", seed=0, workers=2):
    """Write the dataset as a folder `output`, or keep the folder where it holds that dataset already."""
    output = Path(output)
    made_as = {"seed": seed, "size": size, "version": VERSION}
    if output.exists():
        description = output / "shapes.json"
        before = read_object(description) or {}
        if made_as.items() <= before.items():
            print(f"{output} is there already")
            return
        raise UserError(f"{output} is not the dataset of {made_as}; remove it or choose another --output")
    output.parent.mkdir(parents=True, exist_ok=True)
    for abandoned in output.parent.glob(f".tmp-*-{output.name}"):
        shutil.rmtree(abandoned)
    temporary = temporary_name(output)
    try:
        temporary.mkdir()
        if size in ("pairs", "twins"):
            from clip_vl.datasets.scenes.pair_sets import build_pairs, build_twins

            counts = (build_pairs if size == "pairs" else build_twins)(temporary, seed, workers)
        else:
            counts = build_tasks(temporary, seed, workers, size)
        write_text(temporary / "shapes.json", json.dumps(made_as | {"pictures": counts}))
        temporary.rename(output)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    print(f"{output}: {sum(counts.values())} images")


def main(args):
    build(args.output, args.size, args.seed, args.workers)


if __name__ == "__main__":
    run_program(main, FLAGS)
