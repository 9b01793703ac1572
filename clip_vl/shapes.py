"""The built-in data set: drawn scenes with captions, questions and answers, in exactly the formats of the real data.

    python -m clip_vl.shapes --output data/shapes                       about 5,000 pictures, half a minute on 2 cores
    python -m clip_vl.shapes --output data/shapes_smoke --size smoke    a hundredth of it, for trying things out

Writes a data root (data/README.md): LXMERT and VQA JSON, the official VQA v2 files of minival, answer tables, COCO and
Visual Genome image folders, image sizes, a Karpathy split, a small BERT vocabulary and configuration, and the scene
graphs. The same seed gives the same bytes. A finished set is recognised, an interrupted one is drawn again.
"""

from dataclasses import dataclass

from clip_vl.engine.flags import flag, parse


@dataclass
class ShapesFlags:
    """Built-in data set"""

    output: str = flag("data/shapes", "Data root to write.")
    size: str = flag("full", "How many pictures.", choices=["full", "smoke"])
    seed: int = flag(0, "Seed of every scene and sentence.")
    workers: int = flag(2, "Processes that draw.")


FLAGS = parse(ShapesFlags, __doc__) if __name__ == "__main__" else None

import json
import multiprocessing
import random
import re
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from clip_vl.datasets.images import relative_path, size_key
from clip_vl.datasets.scene_drawing import draw_scene
from clip_vl.datasets.scene_sentences import annotate, captions, questions, regions
from clip_vl.datasets.scenes import scene_to_json, think_up_scene
from clip_vl.engine.dist import run_program
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import temporary_name
from clip_vl.engine.random import derive_seed, numpy_rng
from clip_vl.evaluation.vqa_score import soft_scores

VERSION = 2  # raise it when the same seed gives other files


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
QUESTION_SOURCES = ("vqa", "gqa", "visual7w")
KARPATHY = {"mscoco_train": "train", "mscoco_nominival": "restval", "mscoco_minival": "test"}
BERT = {
    "model_type": "bert", "hidden_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 512,
    "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 32, "initializer_range": 0.06, "type_vocab_size": 2, "pad_token_id": 0,
}  # fmt: skip


def make_picture(task):
    """Think up, draw and describe one picture; everything follows from (seed, number).

    task:    (folder, img_id, number, seed, sentences per source)
    returns: dict with img_id, the scene's JSON, sentences per source, and per question source the annotators' answers
    """
    root, img_id, number, seed, wanted = task
    rng = random.Random(derive_seed(seed, "scene", number))
    scene = think_up_scene(rng)
    draw_scene(scene, numpy_rng(seed, "grain", number)).save(root / relative_path(img_id), quality=92)
    record = {"img_id": img_id, "scene": scene_to_json(img_id, scene), "sentences": {}, "questions": {}}
    for source, count in wanted.items():
        if source in QUESTION_SOURCES:
            asked = questions(scene, rng, count)
            answers = [annotate(q.answer, rng) if source == "vqa" else [q.answer] for q in asked]
            record["questions"][source] = [(q._asdict(), given) for q, given in zip(asked, answers)]
            record["sentences"][source] = [q.text for q in asked]
        else:
            record["sentences"][source] = (captions if source == "mscoco" else regions)(scene, rng, count)
    return record


def draw_pictures(root, size, seed, workers):
    """All pictures of all splits: {split: [record, ...]}. Image numbers run through the splits, so ids never meet."""
    tasks, number = {}, 0
    for split in SPLITS:
        tasks[split.name] = []
        for _ in range(split.smoke if size == "smoke" else split.pictures):
            number += 1
            task = (root, split.pattern.format(number), number, seed, split.sentences)
            tasks[split.name].append(task)
            (root / relative_path(task[1])).parent.mkdir(parents=True, exist_ok=True)
    records = {}
    with (
        multiprocessing.Pool(workers) as pool,
        tqdm(total=number, desc="drawing", disable=not sys.stderr.isatty()) as bar,
    ):
        for name, split_tasks in tasks.items():
            records[name] = []
            for record in pool.imap(make_picture, split_tasks, chunksize=16):
                records[name].append(record)
                bar.update()
    return records


def label_of(source, given):
    """The soft label of a question: ten people's answers for VQA, one answer elsewhere."""
    return soft_scores(given) if source == "vqa" else {given[0]: 1.0}


def lxmert_rows(records):
    """LXMERT's form: one object per image, labels aligned with the sentences of their source."""
    return [
        {
            "img_id": record["img_id"],
            "sentf": record["sentences"],
            "labelf": {s: [label_of(s, given) for _, given in asked] for s, asked in record["questions"].items()},
        }
        for record in records
    ]


def vqa_rows(records, labelled):
    """VQA's flat form; question ids are the image number times 1,000 plus the place, as COCO-QA ids are."""
    rows = []
    for record in records:
        for place, (question, given) in enumerate(record["questions"]["vqa"]):
            row = {"question_id": question_id(record, place), "img_id": record["img_id"], "sent": question["text"]}
            if labelled:
                row |= {"question_type": question["question_type"], "answer_type": question["answer_type"]}
                row["label"] = soft_scores(given)
            rows.append(row)
    return rows


def image_number(record):
    return int(record["img_id"].rsplit("_", 1)[-1])


def question_id(record, place):
    return image_number(record) * 1000 + place


def official_vqa(records):
    """The official VQA v2 files of a split: (questions, annotations)."""
    head = {
        "info": {"description": "Questions about drawn shapes", "version": "1.0", "year": 2026},
        "license": {"name": "MIT", "url": ""},
        "data_subtype": "minival2014",
    }
    asked, annotated = [], []
    for record in records:
        for place, (question, given) in enumerate(record["questions"]["vqa"]):
            ids = {"image_id": image_number(record), "question_id": question_id(record, place)}
            asked.append(ids | {"question": question["text"]})
            answers = [
                {"answer": answer, "answer_confidence": "yes", "answer_id": number}
                for number, answer in enumerate(given, 1)
            ]
            types = {name: question[name] for name in ("question_type", "answer_type")}
            common = max(given, key=given.count)
            annotated.append(ids | types | {"multiple_choice_answer": common, "answers": answers})
    questions_file = head | {"task_type": "Open-Ended", "data_type": "mscoco", "questions": asked}
    return questions_file, head | {"data_type": "mscoco", "annotations": annotated}


def karpathy_split(records):
    """The Karpathy split of the COCO pictures: captions as tokens and as they are."""
    images, next_sentence = [], 0
    for name, split in KARPATHY.items():
        for record in records[name]:
            sentences = [
                {"tokens": re.findall(r"\w+", raw), "raw": raw, "imgid": len(images), "sentid": next_sentence + place}
                for place, raw in enumerate(record["sentences"]["mscoco"])
            ]
            next_sentence += len(sentences)
            path = Path(relative_path(record["img_id"]))
            images.append({
                "filepath": path.parent.name, "filename": path.name, "cocoid": image_number(record),
                "imgid": len(images), "split": split, "sentids": [s["sentid"] for s in sentences],
                "sentences": sentences,
            })  # fmt: skip
    return {"dataset": "coco", "images": images}


def answer_tables(records):
    """(all_ans.json, the VQA answers in order): every answer of the labels and the sources that it occurs in."""
    sources = {}
    for record in (r for name, split in records.items() if name != "test" for r in split):
        for source, asked in record["questions"].items():
            for _, given in asked:
                for answer in label_of(source, given):
                    sources.setdefault(answer, set()).add(source)
    table = [{"ans": answer, "dsets": sorted(sources[answer])} for answer in sorted(sources)]
    return table, [entry["ans"] for entry in table if "vqa" in entry["dsets"]]


def vocabulary(records):
    """A WordPiece vocabulary in BERT's form: special tokens, letters to fall back on, and every word of the set."""
    words = set()
    for split in records.values():
        for record in split:
            for sentences in record["sentences"].values():
                for sentence in sentences:
                    words.update(re.findall(r"\w+|[^\w\s]", sentence.lower()))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*pieces, *sorted(words)])]


def write_files(root, records):
    """Everything but the pictures."""
    table, answers = answer_tables(records)
    words = vocabulary(records)
    official = official_vqa(records["mscoco_minival"])
    sizes = {
        size_key(relative_path(r["img_id"])): [r["scene"]["height"], r["scene"]["width"]]
        for split in records.values()
        for r in split
    }
    files = {
        "lxmert/all_ans.json": table,
        "vqa/trainval_label2ans.json": answers,
        "vqa/trainval_ans2label.json": {answer: label for label, answer in enumerate(answers)},
        "vqa/v2_OpenEnded_mscoco_minival2014_questions.json": official[0],
        "vqa/v2_mscoco_minival2014_annotations.json": official[1],
        "mscoco/width_heigths.json": sizes,
        "karpathy/dataset_coco.json": karpathy_split(records),
        "bert-base-uncased/config.json": BERT | {"vocab_size": len(words)},
    }
    for name, split in records.items():
        if name != "test":
            files[f"lxmert/{name}.json"] = lxmert_rows(split)
        if "vqa" in split[0]["questions"]:
            files[f"vqa/{name.removeprefix('mscoco_')}.json"] = vqa_rows(split, labelled=name != "test")
    for name, value in files.items():
        write(root / name, json.dumps(value))
    for name, split in records.items():
        write(root / "scenes" / f"{name}.jsonl", "".join(json.dumps(r["scene"]) + "\n" for r in split))
    write(root / "bert-base-uncased" / "vocab.txt", "\n".join(words) + "\n")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def build(output, size="full", seed=0, workers=2):
    """Write the data set as a folder `output`, or leave it alone when it is there already."""
    output = Path(output)
    made_as = {"seed": seed, "size": size, "version": VERSION}
    if output.exists():
        description = output / "shapes.json"
        before = json.loads(description.read_text()) if description.is_file() else {}
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
        records = draw_pictures(temporary, size, seed, workers)
        write_files(temporary, records)
        counts = {name: len(split) for name, split in records.items()}
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
