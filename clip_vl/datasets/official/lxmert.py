"""Converts COCO captions, Visual Genome, GQA and VQA to the pre-training files lxmert/*.json and their answer table.

As in LXMERT (arXiv:1908.07490), an image of both COCO and Visual Genome has its COCO id and the sentences of both;
region descriptions of Visual Genome are captions of the whole image, and its questions have the category visual7w.
All 9 million sentences are collected in memory, 2.5 GB, before the files are written.
"""

import functools
from collections import Counter, defaultdict
from pathlib import Path

from tqdm import tqdm

from clip_vl.datasets.lxmert.answers import normalise_answer
from clip_vl.datasets.official.coco import coco_captions
from clip_vl.datasets.official.files import (
    TRAINING_FILES,
    coco_image_id,
    expected_form,
    minival_rule,
    official_path,
    text_of,
    write_list,
)
from clip_vl.datasets.storage.json_stream import iterate_json_list, iterate_json_object
from clip_vl.engine.errors import DataError
from clip_vl.engine.readers.text import id_of

FILES = ("mscoco_train", "mscoco_nominival", "mscoco_minival", "vgnococo")
TABLE_SIZE = 9500  # answers of the pre-training table


def convert_lxmert(root):
    """Write the four files from the official ones and vqa/*.json; GQA's may be missing. Returns paths written."""
    images = {}
    _add_captions(images, root)
    coco_ids = _coco_ids_of(images, root)
    _add_regions(images, coco_ids, official_path(root, "region_descriptions"))
    _add_vg_questions(images, coco_ids, official_path(root, "question_answers"))
    for split in ("train", "val"):
        path = official_path(root, f"{split}_balanced_questions")
        if path.exists():
            _add_gqa(images, coco_ids, path)
    for split in ("train", "nominival", "minival"):
        _add_vqa(images, Path(root, "vqa", f"{split}.json"))
    files, is_minival = defaultdict(list), minival_rule(root)
    for img_id in sorted(images):
        files[_file_of(img_id, is_minival)].append(images[img_id])
    return [path for name in FILES for path in write_list(Path(root, "lxmert", f"{name}.json"), files[name])]


def _file_of(img_id, is_minival):
    if "train2014" in img_id:
        return "mscoco_train"
    if "val2014" in img_id:
        return "mscoco_minival" if is_minival(img_id) else "mscoco_nominival"
    return "vgnococo"


def _add(images, img_id, category, sentence, label=None):
    """Add a sentence to its image, with the label if it is a question; empty sentences are dropped."""
    if not (sentence := sentence.strip()):
        return
    image = images.setdefault(img_id, {"img_id": img_id, "sentf": {}, "labelf": {}})
    image["sentf"].setdefault(category, []).append(sentence)
    if label is not None:
        image["labelf"].setdefault(category, []).append(label)


@functools.cache
def _certain(answer):
    """The label of a single answer, one object for all of its questions, of which there are millions."""
    return {answer: 1.0}


def _add_captions(images, root):
    for split in ("train2014", "val2014"):
        path = official_path(root, f"captions_{split}")
        with expected_form(path):
            for number, caption in coco_captions(path):
                _add(images, coco_image_id(split, number), "mscoco", caption)


def _coco_ids_of(images, root):
    """{VG id: COCO id} of the Visual Genome images that have COCO captions; ids are strings."""
    captioned = {int(img_id.rsplit("_", 1)[1]): img_id for img_id in images}
    path = official_path(root, "image_data")
    with expected_form(path):
        return {
            id_of(image["image_id"]): captioned[number]
            for _, image in iterate_json_list(path)
            if image["coco_id"] is not None and (number := int(id_of(image["coco_id"]))) in captioned
        }


def _vg_images(path, coco_ids):
    """(img_id, entry) of each image of a Visual Genome file."""
    for _, image in tqdm(iterate_json_list(path), path.stem, unit="image", disable=None):
        number = id_of(image["id"] if "id" in image else image["image_id"])  # the key differs between releases
        yield coco_ids.get(number, number), image


def _add_regions(images, coco_ids, path):
    with expected_form(path):
        for img_id, image in _vg_images(path, coco_ids):
            for region in image["regions"]:
                _add(images, img_id, "vg", text_of(region, "phrase"))


def _add_vg_questions(images, coco_ids, path):
    with expected_form(path):
        for img_id, image in _vg_images(path, coco_ids):
            for qa in image["qas"]:
                _add(images, img_id, "visual7w", text_of(qa, "question"), _certain(text_of(qa, "answer")))


def _add_gqa(images, coco_ids, path):
    with expected_form(path):
        for _, _, entry in tqdm(iterate_json_object(path), path.stem, unit="question", disable=None):
            number = id_of(entry["imageId"])
            label = _certain(text_of(entry, "answer"))
            _add(images, coco_ids.get(number, number), "gqa", text_of(entry, "question"), label)


def _add_vqa(images, path):
    with expected_form(path):
        for _, row in tqdm(iterate_json_list(path), f"vqa {path.stem}", unit="question", disable=None):
            _add(images, row["img_id"], "vqa", row["sent"], row["label"])


def build_answer_table(root):
    """The 9,500 most frequent normalised answers of the training files -> lxmert/all_ans.json; returns paths written.

    It differs from the published table of the same length: a published answer head needs the published file.
    """
    counts, sets = Counter(), defaultdict(set)
    for category, answer in _training_answers(root):
        counts[answer] += 1
        sets[answer].add(category)
    reachable = [answer for answer in counts if answer and normalise_answer(answer) == answer]
    chosen = sorted(sorted(reachable, key=lambda answer: (-counts[answer], answer))[:TABLE_SIZE])
    if not chosen:
        raise DataError(f"the training files in {root}/lxmert hold no answers to build all_ans.json from")
    rows = [{"ans": answer, "dsets": sorted(sets[answer])} for answer in chosen]
    return write_list(Path(root, "lxmert", "all_ans.json"), rows)


def _training_answers(root):
    """Yield (category, normalised answer) for each answer of each question."""
    for name in TRAINING_FILES:
        path = Path(root, "lxmert", f"{name}.json")
        with expected_form(path):
            for _, image in tqdm(iterate_json_list(path), f"answers of {name}", unit="image", disable=None):
                for category, labels in image["labelf"].items():
                    for label in labels:
                        yield from ((category, answer) for answer in set(map(normalise_answer, label)))
