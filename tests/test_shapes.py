"""The built-in data set: deterministic, balanced, in the real formats, and every answer true of its scene."""

import hashlib
import json
import re
from collections import Counter, defaultdict

import PIL
import pytest
from PIL import Image

from clip_vl.datasets.scenes.pair_sets import make_pair, make_twins
from clip_vl.datasets.scenes.scene import RGB, scene_from_json
from clip_vl.evaluation.vqa_score import official_accuracy

FILES = ("mscoco_train", "mscoco_nominival", "mscoco_minival", "vgnococo")


def read(root, name):
    return json.loads((root / name).read_text())


def scenes(root):
    rows = (json.loads(line) for path in sorted((root / "scenes").iterdir()) for line in path.read_text().splitlines())
    return {row["img_id"]: scene_from_json(row) for row in rows}


def digest(root):
    """One digest over every file's name and bytes."""
    total = hashlib.sha256()
    folders = [path for path in root.iterdir() if path.name != "cache"]
    for path in sorted(p for folder in folders for p in (folder, *folder.rglob("*")) if p.is_file()):
        total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


def test_the_same_seed_gives_the_same_bytes_whatever_the_worker_count(programs, shapes_root, tmp_path):
    programs.run("shapes", "--output", tmp_path / "again", "--size", "smoke", "--workers", "2")
    assert digest(tmp_path / "again") == digest(shapes_root)


GENERATED = {  # what seed 0 gave when VERSION became 4
    "smoke": "539bbf72c7fdc9844f10a16138a4cc9618351f83cdccf04db8e41e6214bb01e9",
    "smoke images": "c5314cb87303b02d5f2e52054dbb959136453c0ac4f0374a12651b3a3d9768db",
    "pairs": "78a654df4c1c5cee25974bc76a1c2b9b01f3d597b6627ae84d4c32825fa3e856",
    "pairs images": "0e1e7e7cbaf438db5ef2c0254110a19ca114befb1853e8e5438a2633e7a05379",
}
ENCODES_ALIKE = PIL.__version__ == "13.0.0"  # another Pillow may write other bytes of the same images


def part_digest(root, images):
    """One digest over the images of a folder, or over its other files; LMDBs, which hold computed floats, excluded."""
    total = hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.is_file() and "cache" not in p.parts and p.suffix != ".mdb"):
        if (path.suffix in (".jpg", ".png")) == images:
            total.update(str(path.relative_to(root)).encode() + path.read_bytes())
    return total.hexdigest()


def test_seed_0_gives_the_published_bytes(shapes_root):
    """A change of the generated data needs another VERSION."""
    assert part_digest(shapes_root, images=False) == GENERATED["smoke"]
    if ENCODES_ALIKE:
        assert part_digest(shapes_root, images=True) == GENERATED["smoke images"]


def test_seed_0_gives_the_published_pairs_and_twins(tmp_path):
    (tmp_path / "images").mkdir()
    rows = [make_pair((tmp_path, f"images/{n}.jpg", n, 0)) for n in range(3)]
    rows += [make_twins((tmp_path, n, 0)) for n in range(2)]
    assert hashlib.sha256(json.dumps(rows).encode()).hexdigest() == GENERATED["pairs"]
    if ENCODES_ALIKE:
        assert part_digest(tmp_path, images=True) == GENERATED["pairs images"]


def test_a_finished_set_is_left_alone_and_another_one_is_not_overwritten(programs, shapes_root):
    before = digest(shapes_root)
    assert "already" in programs.run("shapes", "--output", shapes_root, "--size", "smoke").stdout
    done = programs.run("shapes", "--output", shapes_root, "--size", "smoke", "--seed", "1", check=False)
    assert done.returncode == 2 and "--output" in done.stderr and digest(shapes_root) == before


def test_lxmert_files_have_the_published_form(shapes_root):
    sources = set()
    for name in FILES:
        for row in read(shapes_root, f"lxmert/{name}.json"):
            assert set(row) == {"img_id", "sentf", "labelf"}
            assert all(len(row["labelf"][source]) == len(row["sentf"][source]) for source in row["labelf"])
            assert set(row["labelf"]) == set(row["sentf"]) - {"mscoco", "vg"}
            sources |= set(row["sentf"])
    assert sources == {"mscoco", "vg", "vqa", "gqa", "visual7w"}


def test_vqa_files_hold_the_questions_of_the_lxmert_files(shapes_root):
    for name in ("train", "nominival", "minival"):
        flat = [(r["img_id"], r["sent"], r["label"]) for r in read(shapes_root, f"vqa/{name}.json")]
        rows = read(shapes_root, f"lxmert/mscoco_{name}.json")
        assert flat == [(r["img_id"], *pair) for r in rows for pair in zip(r["sentf"]["vqa"], r["labelf"]["vqa"])]
    assert all(set(row) == {"question_id", "img_id", "sent"} for row in read(shapes_root, "vqa/test.json"))


def test_answer_tables_cover_every_label(shapes_root):
    table = read(shapes_root, "lxmert/all_ans.json")
    names = [row["ans"] for row in table]
    assert names == sorted(set(names))
    labels = read(shapes_root, "vqa/trainval_label2ans.json")
    assert read(shapes_root, "vqa/trainval_ans2label.json") == {answer: i for i, answer in enumerate(labels)}
    used = {
        a
        for name in ("train", "nominival", "minival")
        for r in read(shapes_root, f"vqa/{name}.json")
        for a in r["label"]
    }
    assert used <= set(labels) <= set(names)


def test_the_official_files_score_the_majority_answer_as_the_labels_do(shapes_root):
    annotations = read(shapes_root, "vqa/v2_mscoco_minival2014_annotations.json")["annotations"]
    questions = read(shapes_root, "vqa/v2_OpenEnded_mscoco_minival2014_questions.json")["questions"]
    labels = {row["question_id"]: row["label"] for row in read(shapes_root, "vqa/minival.json")}
    given = {a["question_id"]: a["multiple_choice_answer"] for a in annotations}
    assert {q["question_id"] for q in questions} == set(labels) == set(given)
    soft = sum(labels[q].get(answer, 0) for q, answer in given.items()) / len(given)
    assert official_accuracy(given, annotations)["overall"] == pytest.approx(100 * soft, abs=0.01)
    assert soft > 0.98  # what a model that is always right can reach


def test_sizes_are_height_and_width_of_the_images(shapes_root):
    files = [read(shapes_root, path.relative_to(shapes_root)) for path in shapes_root.glob("*/width_heigths.json")]
    sizes = {key: size for file in files for key, size in file.items()}
    pictures = [path for path in shapes_root.rglob("*") if path.suffix in (".jpg", ".png")]
    assert len(sizes) == sum(map(len, files)) == len(pictures)
    for key, (height, width) in list(sizes.items())[::7]:
        with Image.open(shapes_root / key.removeprefix("data/")) as image:
            assert image.size == (width, height)
    assert {height > width for height, width in sizes.values()} == {True, False}


def test_every_word_is_in_the_vocabulary_and_no_sentence_is_cut(shapes_root):
    from clip_vl.datasets.lxmert.wordpiece import load_tokenizer

    tokenizer = load_tokenizer(shapes_root / "bert-base-uncased")
    sentences = [
        s for n in FILES for r in read(shapes_root, f"lxmert/{n}.json") for f in r["sentf"].values() for s in f
    ]
    words = (shapes_root / "bert-base-uncased" / "vocab.txt").read_text().split("\n")
    for ids in tokenizer.encode(sentences, max_length=100):
        assert len(ids) <= 20 and words.index("[UNK]") not in ids
        assert not any(words[i].startswith("##") for i in ids)


def test_colours_in_the_picture_are_those_of_the_scene(shapes_root):
    """The mean colour of a solid thing's middle is nearest to its own name among all colours."""
    solid = right = 0
    for img_id, scene in scenes(shapes_root).items():
        path = next(shapes_root.rglob(f"{img_id}.*"))
        image = Image.open(path).convert("RGB")
        for thing in scene.things:
            if thing.texture == "solid" and thing.shape != "ring":  # a ring's middle is background
                middle = image.crop((int(thing.x) - 2, int(thing.y) - 2, int(thing.x) + 3, int(thing.y) + 3))
                seen = [sum(channel) / 25 for channel in zip(*middle.getdata())]
                nearest = min(RGB, key=lambda c, seen=seen: sum((a - b) ** 2 for a, b in zip(RGB[c], seen)))
                solid, right = solid + 1, right + (nearest == thing.color)
    assert solid > 20 and right == solid


# ---- answers, worked out a second time from the words of the question


def second_opinion(question, scene):
    """The answer by another road: the question's words are looked up and counted in a table of the scene."""
    table = [(t.color, t.shape, t.size, t.texture, t.x, t.y) for t in scene.things]
    singular = {"crosses": "cross"} | {f"{s}s": s for s in ("square", "triangle", "ring")}
    if m := re.fullmatch(r"(?:is there|can you see|does the picture show) an? (\w+) (\w+)\?", question):
        return "yes" if m.groups() in {row[:2] for row in table} else "no"
    if m := re.fullmatch(r"how many (?:(\w+) things|(\w+)) are there\?", question):
        color, noun = m.groups()
        wanted = {color, singular.get(noun)} - {None}
        return str(sum(wanted <= set(row) for row in table))
    if m := re.fullmatch(r"(?:what color is|what is the color of) the (\w+)\?", question):
        return next(row[0] for row in table if row[1] == m[1])
    if m := re.fullmatch(r"is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+)\?", question):
        (a,), (b,) = ([row for row in table if row[:2] == pair] for pair in (m.groups()[:2], m.groups()[3:]))
        truth = {"left of": a[4] < b[4], "right of": a[4] > b[4], "above": a[5] < b[5], "below": a[5] > b[5]}
        return "yes" if truth[m[3]] else "no"
    if m := re.fullmatch(r"are there (more|as many) (.+) (?:than|as) (.+)\?", question):

        def count(noun):
            return sum((singular.get(noun) or noun.split()[0]) in row for row in table)

        return "yes" if (count(m[2]) > count(m[3]) if m[1] == "more" else count(m[2]) == count(m[3])) else "no"
    return None


def test_answers_are_true_of_their_scenes(shapes_root):
    drawn, checked = scenes(shapes_root), Counter()
    for name in FILES:
        for row in read(shapes_root, f"lxmert/{name}.json"):
            for source in ("gqa", "visual7w"):  # one answer, without the annotators' slips
                for question, label in zip(row["sentf"].get(source, []), row["labelf"].get(source, [])):
                    answer = second_opinion(question, drawn[row["img_id"]])
                    if answer is not None:
                        checked[question.split()[0]] += 1
                        assert label == {answer: 1.0}, (row["img_id"], question)
    assert set(checked) >= {"is", "how", "what", "are", "can"} and sum(checked.values()) > 80


def test_questions_alone_say_little(shapes_root):
    """The best answer to each question type, learnt on train, stays near 50 % on minival."""
    votes = defaultdict(Counter)
    for row in read(shapes_root, "vqa/train.json"):
        votes[row["question_type"], row["answer_type"]].update(row["label"])
    scores = []
    for row in read(shapes_root, "vqa/minival.json"):
        best = votes[row["question_type"], row["answer_type"]].most_common(1)
        scores.append(row["label"].get(best[0][0], 0) if best else 0)
    assert 0.3 < sum(scores) / len(scores) < 0.6


def test_yes_is_as_common_as_no():
    """Over many scenes, in each way of asking: within four standard deviations of a fair coin."""
    import random

    from clip_vl.datasets.scenes.scene import random_scene
    from clip_vl.datasets.scenes.sentences import questions

    rng, counts = random.Random(0), defaultdict(Counter)
    for _ in range(800):
        for question in questions(random_scene(rng), rng, 8):
            if question.answer_type == "yes/no":
                counts[" ".join(question.text.split()[:2])][question.answer] += 1
    for form, count in counts.items():
        total = sum(count.values())
        assert abs(count["yes"] - total / 2) < 2 * total**0.5, (form, count)


def test_drawn_questions_of_gqa_have_its_types(shapes_root):
    rows = json.loads((shapes_root / "gqa" / "train.json").read_text())
    assert {row["question_type"] for row in rows} == {"query", "verify", "choose", "compare"}
    assert {row["answer_type"] for row in rows} == {"attr", "obj", "rel"}
    for row in rows:  # open questions are those that neither yes or no nor a choice of the question answers
        answer = next(iter(row["label"]))
        assert (row["question_type"] == "query") == (answer not in ("yes", "no") and " or " not in row["sent"])
