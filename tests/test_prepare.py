"""The program on small COCO/VG-shaped data roots: what it says, what it makes, and that a repeat changes nothing."""

import errno
import fcntl
import io
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile

import pytest
from PIL import Image

from clip_vl import prepare
from clip_vl.datasets.images.image_lmdb import ImageLMDB, store_path
from clip_vl.datasets.official.parts import PARTS, TASK_PARTS
from clip_vl.engine.errors import DataError, Interrupted, UserError
from clip_vl.engine.signals import SIGNALS

TRAIN, NOMINIVAL, MINIVAL = "COCO_train2014_000000000001", "COCO_val2014_000000000002", "COCO_val2014_000000000003"
SIZES = {
    f"mscoco/train2014/{TRAIN}.jpg": (64, 48),
    f"mscoco/val2014/{NOMINIVAL}.jpg": (48, 64),
    f"mscoco/val2014/{MINIVAL}.jpg": (50, 50),
    "vg_raw_images/VG_100K/10.jpg": (70, 40),
    "vg_raw_images/VG_100K/11.jpg": (40, 70),
}


@pytest.fixture(autouse=True)
def terminate_handler():
    """`main` takes signals over; give them back."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


@pytest.fixture
def root(tmp_path):
    """Everything that pre-training and VQA need, but for the sizes."""
    for name, size in SIZES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (9, 90, 200)).save(tmp_path / name)
    about = {"sentf": {"vg": ["a dog"], "gqa": ["a dog ?"]}, "labelf": {"gqa": [{"yes": 1.0}]}}
    images = {"train": [TRAIN], "nominival": [NOMINIVAL], "minival": [MINIVAL]}
    for name, ids in [(f"mscoco_{name}", ids) for name, ids in images.items()] + [("vgnococo", ["10", "11"])]:
        write(tmp_path / "lxmert" / f"{name}.json", [{"img_id": img_id} | about for img_id in ids])
    for name, (img_id,) in images.items():
        row = {"question_id": 1, "img_id": img_id, "sent": "a dog ?", "question_type": "a", "answer_type": "yes/no"}
        write(tmp_path / "vqa" / f"{name}.json", [row | {"label": {"yes": 1.0}}])
    write(tmp_path / "vqa" / "trainval_label2ans.json", ["no", "yes"])
    write(tmp_path / "vqa" / "trainval_ans2label.json", {"no": 0, "yes": 1})
    write(tmp_path / "lxmert" / "all_ans.json", [{"ans": "yes", "dsets": ["vqa", "gqa"]}])
    write(tmp_path / "bert-base-uncased" / "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ndog\n?\n")
    write(tmp_path / "bert-base-uncased" / "config.json", {})
    return tmp_path


def run(root, command, need=("pretrain", "vqa"), **flags):
    prepare.main(prepare.PrepareFlags(command=command, data_root=str(root), need=list(need), **flags))


def state(root):
    """Content and inode of every file: a file that was written again shows. Digests are remembered when they can be."""
    files = [p for p in root.rglob("*") if p.is_file() and p.name != "digests.json"]
    return {p: (p.stat().st_ino, p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def test_an_empty_root_is_answered_with_the_command_for_everything_needed(tmp_path, capsys):
    with pytest.raises(DataError, match=r"not ready for pretrain, vqa: .*missing"):
        run(tmp_path, "check")
    _, needed, others = capsys.readouterr().out.split("to fetch what")
    for part in PARTS:
        assert part.command(tmp_path) in (needed if {"pretrain", "vqa"} & set(part.uses) else others)
    assert "RN50.pt" not in needed and "RN50.pt" in others


def test_a_complete_root_is_ready_and_its_sizes_are_those_of_pillow(root, capsys):
    run(root, "check")
    assert f"{root} is ready for pretrain, vqa" in capsys.readouterr().out
    sizes = json.loads((root / "mscoco" / "width_heigths.json").read_text())
    assert sizes == {f"data/{name}": [height, width] for name, (width, height) in SIZES.items()}


def test_a_repeated_check_changes_nothing(root):
    run(root, "check")
    before = state(root)
    run(root, "check")
    assert state(root) == before


def test_nested_visual_genome_images_are_found(root, capsys):
    flat = root / "vg_raw_images" / "VG_100K"
    for folder, name in (("VG_100K", "10.jpg"), ("VG_100K_2", "11.jpg")):
        (flat / folder).mkdir()
        (flat / name).rename(flat / folder / name)
    run(root, "check")
    assert "2 images moved out of nested folders" in capsys.readouterr().out
    assert sorted(path.name for path in flat.iterdir()) == ["10.jpg", "11.jpg"]


def test_unreadable_and_absent_images_are_named_counted_and_above_the_tolerance_an_error(root, capsys):
    (root / f"mscoco/train2014/{TRAIN}.jpg").write_bytes(b"\xff\xd8 cut short")
    (root / "vg_raw_images/VG_100K/11.jpg").unlink()
    with pytest.raises(DataError, match=r": lxmert/mscoco_train.json, lxmert/vgnococo.json, vqa/train.json without"):
        run(root, "check")
    out = capsys.readouterr().out
    assert "1 images are unreadable" in out and "2 entries, 1 without image, '11' first" in out
    assert (root / "unreadable_images.txt").read_text().startswith(f"mscoco/train2014/{TRAIN}.jpg\t")
    run(root, "check", tolerance=1.0)


def test_a_wrong_annotation_file_is_reported_beside_the_others(root, capsys):
    write(root / "vqa" / "train.json", '[\n{"img": 3}\n]')
    with pytest.raises(DataError, match=r"vqa/train.json without"):
        run(root, "check")
    out = capsys.readouterr().out
    assert "train.json:2: an entry must be" in out and "vqa/minival.json" in out


def test_weights_of_another_digest_are_damaged_and_tables_of_ones_own_are_fine(root, capsys):
    write(root / "clip" / "RN50.pt", "half a download")
    write(root / "bert-base-uncased" / "model.safetensors", "weights")
    with pytest.raises(DataError, match=r"clip/RN50.pt missing or damaged"):
        run(root, "check", ("vqa", "weights"))
    out = capsys.readouterr().out
    assert f"rm {root}/clip/RN50.pt && wget" in out
    lines = out.splitlines()
    assert any(line.split()[:2] == ["damaged", "clip/RN50.pt"] for line in lines)
    assert any(line.split()[:2] == ["own", "vqa/trainval_label2ans.json"] for line in lines)


def test_convert_says_what_to_fetch_first(root, capsys):
    (root / "lxmert" / "vgnococo.json").unlink()
    (root / "vqa" / "test.json").unlink(missing_ok=True)
    with pytest.raises(DataError, match=r"lxmert/vgnococo.json cannot be made before"):
        run(root, "convert", ("pretrain",))
    out = capsys.readouterr().out
    assert "region_descriptions.json.zip" in out and "captions_val2014.json" in out and "v2_Questions" not in out


def test_convert_makes_the_test_split_and_a_repeat_does_nothing(root, capsys):
    question = {"image_id": 5, "question": "Who?", "question_id": 50}
    write(root / "official" / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [question]})
    run(root, "convert", ("test",))
    assert "test.json" in capsys.readouterr().out
    before = state(root)
    run(root, "convert", ("test",))
    assert state(root) == before
    assert capsys.readouterr().out == "every annotation file for test is there\n"


def test_convert_says_what_the_files_lack_without_gqa(root, capsys):
    (root / "lxmert" / "vgnococo.json").unlink()
    write(root / "official" / "captions_train2014.json", {"annotations": [{"image_id": 1, "caption": "a dog"}]})
    write(root / "official" / "captions_val2014.json", {"annotations": []})
    write(root / "official" / "image_data.json", [{"image_id": 10, "coco_id": None}])
    write(root / "official" / "region_descriptions.json", [{"id": 10, "regions": [{"phrase": "a dog"}]}])
    write(root / "official" / "question_answers.json", [{"id": 10, "qas": [{"question": "a ?", "answer": "dog"}]}])
    run(root, "convert", ("pretrain",))
    out = capsys.readouterr().out
    assert "lxmert/vgnococo.json would hold more after:" in out and "train_balanced_questions.json" in out
    (image,) = json.loads((root / "lxmert" / "vgnococo.json").read_text())
    assert image["sentf"] == {"vg": ["a dog"], "visual7w": ["a ?"]}


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half_written(root, monkeypatch):
    question = {"image_id": 5, "question": "Who?", "question_id": 50}
    write(root / "official" / "v2_OpenEnded_mscoco_test2015_questions.json", {"questions": [question]})

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        run(root, "convert", ("test",))
    assert not [path for path in (root / "vqa").iterdir() if "test" in path.name]


def test_images_builds_a_store_that_reads_like_the_folders(root, capsys):
    sizes = {"image_size_min": 32, "image_size_max": 64}
    run(root, "images", **sizes)
    assert "holds 5 of 5 images" in capsys.readouterr().out
    store = ImageLMDB(store_path(root, 32, 64), 32, 64)
    assert tuple(store.load(MINIVAL, 32, 64).shape) == (3, 32, 32)
    run(root, "images", **sizes)
    assert "holds 5 of 5 images" in capsys.readouterr().out


def test_images_names_the_damaged_ones(root, capsys):
    (root / "vg_raw_images/VG_100K/10.jpg").write_bytes(b"nothing")
    with pytest.raises(DataError, match="1 of 5 images are damaged"):
        run(root, "images")
    assert "10.jpg: is not an image" in capsys.readouterr().out


def test_caches_are_built_once(root, capsys):
    run(root, "check")
    run(root, "caches")
    out = capsys.readouterr().out
    assert "mscoco_train, mscoco_nominival, vgnococo: 8 sentences of 4 images" in out
    assert "train, nominival: 2 sentences of 2 images" in out
    before = {path for path in (root / "cache").iterdir() if path.is_dir()}
    assert len(before) == 4
    run(root, "caches")
    assert {path for path in (root / "cache").iterdir() if path.is_dir()} == before


def test_an_interrupt_says_that_it_can_be_continued(root, monkeypatch):
    def interrupted(root, args):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setitem(prepare.COMMANDS, "check", interrupted)
    with pytest.raises(Interrupted, match="same command continues it"):
        run(root, "check")


def test_what_a_killed_writer_left_is_cleared_away(root):
    leftover = write(root / "vqa" / ".tmp-0123abcd-train.json", "[")
    run(root, "check")
    assert not leftover.exists()


def test_two_at_once_are_refused(root):
    descriptor = os.open(root, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        with pytest.raises(UserError, match="another process is preparing"):
            run(root, "check")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"command": "tidy"}, "no command 'tidy'; the commands are check, convert, digests, images, caches"),
        ({"need": ["glue"]}, "--need glue is none of pretrain, vqa, test, weights, gqa"),
        ({"root": "/nowhere/data"}, "no folder /nowhere/data"),
    ],
)
def test_a_wrong_word_is_answered_with_the_right_ones(tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        run(**{"root": tmp_path, "command": "check"} | change)


def test_the_command_line_exits_with_3_and_one_sentence(tmp_path):
    command = f"{sys.executable} -m clip_vl.prepare check --data_root {shlex.quote(str(tmp_path))} --need vqa"
    done = subprocess.run(shlex.split(command), capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.startswith(f"{tmp_path} is not ready for vqa:") and done.stderr.count("\n") == 1


# ---- the sibling tasks


@pytest.fixture
def siblings(tmp_path):
    """Official files of the four sibling tasks, one entry a split, and their images."""
    official = tmp_path / "official"
    types = {"structural": "query", "semantic": "attr"}
    asked = {"imageId": "n1", "question": "a dog ?", "answer": "yes", "types": types}
    for name in ("train", "val", "testdev"):
        write(official / f"{name}_balanced_questions.json", {"1": asked})
    pair = {"pairID": "5.jpg#0r1n", "Flickr30K_ID": "5", "sentence2": "A dog", "gold_label": "neutral"}
    for name in ("train", "dev", "test"):
        write(official / f"snli_ve_{name}.jsonl", json.dumps(pair))
        identifier, folder = "7-0", f"nlvr/{name}"
        example = {"identifier": identifier, "directory": "0", "sentence": "a dog", "label": "true"}
        with zipfile.ZipFile(official / f"nlvr_{name}.zip", "w") as archive:
            archive.writestr(f"{folder}/{name}.json", json.dumps(example))
            for order in range(6):
                picture = f"{folder}/images/0/{name}-{identifier}-{order}.png"
                archive.writestr(picture, png_bytes((40, 10)))
    for name in ("train", "dev", "test1"):
        write(official / f"nlvr2_{name}.json", json.dumps({"identifier": f"{name}-3-0-1", "sentence": "a dog"}))
        for side in (0, 1):
            folder = tmp_path / "nlvr2_raw_images" / (f"images/{name}/3" if name == "train" else name)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{name}-3-0-img{side}.png").write_bytes(png_bytes((30, 20)))
    for path in ("gqa_raw_images/images/n1.jpg", "flickr30k_images/5.jpg"):
        (tmp_path / path).parent.mkdir(parents=True)
        Image.new("RGB", (20, 30)).save(tmp_path / path)
    write(tmp_path / "bert-base-uncased" / "vocab.txt", "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\ndog\n?\n")
    write(tmp_path / "bert-base-uncased" / "config.json", {})
    return tmp_path


def png_bytes(size):
    buffer = io.BytesIO()
    Image.new("RGB", size).save(buffer, "PNG")
    return buffer.getvalue()


COUNTS = {  # task -> images measured in all, a file of sizes and one of its entries
    "gqa": (1, "gqa_raw_images", {"data/gqa_raw_images/images/n1.jpg": [30, 20]}),
    "snli_ve": (1, "flickr30k_images", {"data/flickr30k_images/5.jpg": [30, 20]}),
    "nlvr2": (6, "nlvr2_raw_images", {"data/nlvr2_raw_images/train/train-3-0-img1.png": [20, 30]}),
    "nlvr": (18, "nlvr_raw_images", {"data/nlvr_raw_images/dev-7-0-5.png": [10, 40]}),
}


@pytest.mark.parametrize("task", COUNTS)
def test_a_sibling_task_goes_from_official_files_to_caches_and_a_repeat_changes_nothing(siblings, task, capsys):
    count, folder, some = COUNTS[task]
    for command in ("convert", "check", "images", "caches"):
        run(siblings, command, [task])
    out = capsys.readouterr().out
    assert f"{siblings} is ready for {task}" in out and f"holds {count} of {count} images" in out
    assert "mscoco" not in out  # the main job is not this one's concern
    assert some.items() <= json.loads((siblings / folder / "width_heigths.json").read_text()).items()
    before = state(siblings)
    for command in ("convert", "check", "caches"):
        run(siblings, command, [task])
    assert state(siblings) == before


@pytest.mark.parametrize("task", COUNTS)
def test_an_empty_root_is_answered_with_what_a_sibling_task_needs_and_no_more(tmp_path, capsys, task):
    with pytest.raises(DataError, match=f"not ready for {task}: .*missing"):
        run(tmp_path, "check", [task])
    out = capsys.readouterr().out
    for part in TASK_PARTS:
        assert (part.command(tmp_path) in out) == (task in part.uses)
    assert "VG_100K" not in out and "RN50" not in out
    with pytest.raises(DataError, match=f"{task}/train.json"):
        run(tmp_path, "convert", [task])
    assert f"{task}/train.json" in capsys.readouterr().out.partition("cannot be made yet; first:")[0]


def test_entries_of_nlvr2_that_lack_either_image_are_counted(siblings, capsys):
    run(siblings, "convert", ["nlvr2"])
    (siblings / "nlvr2_raw_images/dev/dev-3-0-img1.png").unlink()
    with pytest.raises(DataError, match=r": nlvr2/dev.json without enough"):
        run(siblings, "check", ["nlvr2"])
    out = capsys.readouterr().out
    assert "1 entries, 1 without image, 'dev-3-0-img1' first" in out
    assert "NLVR2: 2 images moved out of nested folders" in out


def test_a_sibling_s_unreadable_images_are_listed_beside_its_sizes(siblings):
    (siblings / "flickr30k_images/6.jpg").write_bytes(b"no image")
    run(siblings, "convert", ["snli_ve"])
    run(siblings, "check", ["snli_ve"])
    assert (siblings / "flickr30k_images/unreadable_images.txt").read_text().startswith("flickr30k_images/6.jpg\t")
    assert not (siblings / "unreadable_images.txt").exists()


def test_what_a_task_can_do_without_is_no_error(siblings, capsys):
    run(siblings, "convert", ["gqa", "nlvr2"])
    out = capsys.readouterr().out
    assert "gqa/submit.json cannot be made yet and are optional; first:" in out
    assert "nlvr2/test2.json cannot be made yet and are optional; first:" in out
