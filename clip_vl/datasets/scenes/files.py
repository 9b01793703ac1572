"""The files of the built-in dataset in the forms of the real ones, from records of its images (`clip_vl.shapes`).

A record is a dict: img_id, scene (its JSON), regions (of `scene_regions`), sentences {source: [str]} and questions
{source: [(the fields of a question, the annotators' answers, their soft label)]}.
"""

import itertools
import re
from pathlib import Path

from clip_vl.datasets.images.collections import relative_path, size_key
from clip_vl.datasets.scenes.scene import ATTRIBUTES
from clip_vl.datasets.scenes.tasks import ENTAILMENTS, FOLDERS

KARPATHY = {"mscoco_train": "train", "mscoco_nominival": "restval", "mscoco_minival": "test"}


def lxmert_rows(records):
    """LXMERT's form: one object per image, labels aligned with the sentences of their source."""
    return [
        {
            "img_id": record["img_id"],
            "sentf": record["sentences"],
            "labelf": {s: [label for *_, label in asked] for s, asked in record["questions"].items()},
        }
        for record in records
    ]


def vqa_rows(records, labelled):
    """VQA's flat form; question ids are the image number times 1,000 plus an index, as in COCO-QA."""
    rows = []
    for record in records:
        for index, (question, _, label) in enumerate(record["questions"]["vqa"]):
            row = {"question_id": question_id(record, index), "img_id": record["img_id"], "sent": question["text"]}
            if labelled:
                row |= {"question_type": question["question_type"], "answer_type": question["answer_type"]}
                row["label"] = label
            rows.append(row)
    return rows


def image_number(record):
    return int(record["img_id"].rsplit("_", 1)[-1])


def question_id(record, index):
    return image_number(record) * 1000 + index


def official_vqa(records):
    """The official VQA v2 files of a split: (questions, annotations)."""
    head = {
        "info": {"description": "Questions about drawn shapes", "version": "1.0", "year": 2026},
        "license": {"name": "MIT", "url": ""},
        "data_subtype": "minival2014",
    }
    asked, annotated = [], []
    for record in records:
        for index, (question, given, _) in enumerate(record["questions"]["vqa"]):
            ids = {"image_id": image_number(record), "question_id": question_id(record, index)}
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
    """The Karpathy split of the COCO images: captions as tokens and as text."""
    images, next_sentence = [], 0
    for name, split in KARPATHY.items():
        for record in records[name]:
            sentences = [
                {"tokens": re.findall(r"\w+", raw), "raw": raw, "imgid": len(images), "sentid": next_sentence + index}
                for index, raw in enumerate(record["sentences"]["mscoco"])
            ]
            next_sentence += len(sentences)
            path = Path(relative_path(record["img_id"]))
            images.append({
                "filepath": path.parent.name, "filename": path.name, "cocoid": image_number(record),
                "imgid": len(images), "split": split, "sentids": [s["sentid"] for s in sentences],
                "sentences": sentences,
            })  # fmt: skip
    return {"dataset": "coco", "images": images}


def instances(records):
    """COCO's official instances of the images; category ids number the shapes from 1."""
    images, annotations = [], []
    for record in records:
        number, scene, regions = image_number(record), record["scene"], record["regions"]
        images.append({"id": number, "file_name": Path(relative_path(record["img_id"])).name,
                       "height": scene["height"], "width": scene["width"]})  # fmt: skip
        for (left, top, right, bottom), shape in zip(regions["boxes"].tolist(), regions["objects_id"].tolist()):
            box = [left, top, right - left, bottom - top]
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": shape + 1,
                                "bbox": box, "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
    categories = [{"id": index + 1, "name": name} for index, name in enumerate(ATTRIBUTES["shape"])]
    return {"images": images, "annotations": annotations, "categories": categories}


def answer_tables(records):
    """(all_ans.json, the VQA answers in order): every answer of the labels with its sources."""
    sources = {}
    for record in (r for name, split in records.items() if name != "test" for r in split):
        for source, asked in record["questions"].items():
            for *_, label in asked:
                for answer in label:
                    sources.setdefault(answer, set()).add(source)
    table = [{"ans": answer, "dsets": sorted(sources[answer])} for answer in sorted(sources)]
    return table, [entry["ans"] for entry in table if "vqa" in entry["dsets"]]


def vocabulary(records, drawn):
    """A WordPiece vocabulary in BERT's form: special tokens, single letters, and every word of the dataset.

    records: {split: [record of an image, ...]} of pre-training and VQA
    drawn:   {(task, split): [scenes and rows of a unit, ...]} of the other tasks
    """
    of_images = (s for split in records.values() for r in split for some in r["sentences"].values() for s in some)
    of_tasks = (row["sent"] for units in drawn.values() for unit in units for row in unit["rows"])
    words = set()
    for sentence in itertools.chain(of_images, of_tasks):
        words.update(re.findall(r"\w+|[^\w\s]", sentence.lower()))
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [*letters, *(f"##{letter}" for letter in letters)]
    return ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*pieces, *sorted(words)])]


def data_root_files(records):
    """{path: value} of the JSON files of pre-training and VQA."""
    table, answers = answer_tables(records)
    official = official_vqa(records["mscoco_minival"])
    scenes = {relative_path(record["img_id"]): record["scene"] for split in records.values() for record in split}
    files = {
        "lxmert/all_ans.json": table,
        **label_tables("vqa", answers),
        "vqa/v2_OpenEnded_mscoco_minival2014_questions.json": official[0],
        "vqa/v2_mscoco_minival2014_annotations.json": official[1],
        "mscoco/width_heigths.json": sizes(scenes),
        "karpathy/dataset_coco.json": karpathy_split(records),
    }
    for year, names in (("train2014", ["mscoco_train"]), ("val2014", ["mscoco_nominival", "mscoco_minival"])):
        files[f"official/instances_{year}.json"] = instances([r for name in names for r in records[name]])
    for name, split in records.items():
        if name != "test":
            files[f"lxmert/{name}.json"] = lxmert_rows(split)
        if "vqa" in split[0]["questions"]:
            files[f"vqa/{name.removeprefix('mscoco_')}.json"] = vqa_rows(split, labelled=name != "test")
    return files


def task_files(drawn):
    """{path: value} of the JSON files of GQA, SNLI-VE and NLVR2."""
    rows = {key: [row for unit in units for row in unit["rows"]] for key, units in drawn.items()}
    gqa_answers = {answer for split in ("train", "valid") for row in rows["gqa", split] for answer in row["label"]}
    files = label_tables("gqa", sorted(gqa_answers)) | label_tables("snli_ve", ENTAILMENTS)
    for task, folder in FOLDERS.items():
        units = [unit for (of, _), units in drawn.items() if of == task for unit in units]
        scenes = {path: scene for unit in units for path, scene in unit["scenes"].items()}
        files[f"{folder.split('/')[0]}/width_heigths.json"] = sizes(scenes)
    return files | {f"{task}/{split}.json": value for (task, split), value in rows.items()}


def label_tables(folder, answers):
    """The files of the answers in the order of their classes, and of the class of each answer."""
    return {
        f"{folder}/trainval_label2ans.json": answers,
        f"{folder}/trainval_ans2label.json": {answer: label for label, answer in enumerate(answers)},
    }


def sizes(scenes):
    """The content of width_heigths.json for {path under the data root: JSON of its scene}."""
    return {size_key(path): [scene["height"], scene["width"]] for path, scene in scenes.items()}


def scene_lists(records, drawn):
    """{name: the scenes' JSON} of every split and every task's split."""
    lists = {name: [record["scene"] for record in split] for name, split in records.items()}
    for (task, split), units in drawn.items():
        lists[f"{task}_{split}"] = [scene for unit in units for scene in unit["scenes"].values()]
    return lists
