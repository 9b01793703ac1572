"""From captions and embeddings to a table of negatives: whole, the same from any number of processes, and counted."""

import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from clip_vl.datasets.negatives.batches import open_negatives
from clip_vl.datasets.negatives.swaps import folded
from clip_vl.datasets.negatives.table import NegativeLMDB, read_tsv, row_id
from clip_vl.engine.errors import DataError, UserError

COLOURS, ANIMALS, PLACES = ("red", "blue", "green"), ("dog", "cat", "horse", "cow"), ("beach", "road", "field")


def embeddings(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)


@pytest.fixture
def inputs(tmp_path):
    """36 images with two captions each, one of which has nothing to swap; image 35 has no other."""
    lines = ["filepath,title"]
    for number in range(36):
        colour, animal, place = COLOURS[number % 3], ANIMALS[number // 3 % 4], PLACES[number // 12]
        captions = [f"A {colour} {animal} runs on a wet {place}.", "Nothing here."]
        lines += [f"val2014/{number}.jpg,{text}" for text in captions[number == 35 :]]
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    rows = embeddings(36)
    rows[4] = 2 * rows[3]  # the same picture, of another length
    np.save(tmp_path / "e.npy", rows)
    return ["--train_data", tmp_path / "captions.csv", "--embeddings", tmp_path / "e.npy", "--datasets_dir", tmp_path]


def test_each_image_gets_swapped_captions_and_its_nearest_images(programs, inputs, tmp_path):
    programs.run("mine_negatives", *inputs, "--output", tmp_path / "out" / "n.tsv", "--lmdb", tmp_path / "n.lmdb")
    rows, report = read_tsv(tmp_path / "out" / "n.tsv"), json.loads((tmp_path / "out" / "n.json").read_text())
    assert [row.filepath for row in rows] == [f"val2014/{number}.jpg" for number in range(35)]
    for row in rows:
        assert row.title != "Nothing here."
        assert all(sorted(folded(negative)) == sorted(folded(row.title)) for negative in row.neg_caption)
    unit = embeddings(36)[:35]
    unit[4] = unit[3]
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    scores = unit @ unit.T
    scores[scores > 0.99] = -1
    assert [list(row.neg_image) for row in rows] == np.argsort(-scores.round(5), axis=1, kind="stable")[:, :3].tolist()
    expected = {"images": 36, "captions": 71, "images_without_swap": 1, "rows": 35, "neighbours": 105,
                "duplicates_excluded": 2, "method": "exact", "recall": 1.0}  # fmt: skip
    assert expected.items() <= report.items()
    assert report["swaps"].keys() == {"noun", "adjective", "phrase"} and report["tagger"].startswith(
        ("bundled", "spacy")
    )
    stored = NegativeLMDB(tmp_path / "n.lmdb")
    assert {stored.load(key).filepath for key in stored.load(row_id(rows[0])).neg_image} == {
        rows[j].filepath for j in rows[0].neg_image
    }


def test_negclip_finds_the_images_wherever_the_table_was_written(programs, inputs, tmp_path):
    root = tmp_path / "tree"
    (root / "captions").mkdir(parents=True)
    (root / "tables").symlink_to(tmp_path / "disk")
    (tmp_path / "disk").mkdir()
    table = root / "captions" / "captions.csv"
    table.write_text((tmp_path / "captions.csv").read_text())
    given = ["--train_data", table, *inputs[2:], "--lmdb", root / "tables" / "copy.lmdb"]
    programs.run("mine_negatives", *given, "--output", root / "tables" / "deep" / "n.tsv")
    for name in ("deep/n.tsv", "copy.lmdb"):
        found = {os.path.realpath(open_negatives(root / "tables" / name).name(row)) for row in range(35)}
        assert found == {str(root / "captions" / "val2014" / f"{number}.jpg") for number in range(35)}
    assert open_negatives(root / "tables" / "deep" / "n.tsv", "/other").name(0) == "/other/val2014/0.jpg"
    (root / "tables" / "deep" / "n.json").unlink()  # as of a published table: its own folder
    assert open_negatives(root / "tables" / "deep" / "n.tsv").name(0) == str(root / "tables/deep/val2014/0.jpg")


def test_images_inside_of_shards_are_refused_before_anything_is_mined(programs, tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for name in ("1.jpg", "1.txt"):
            (tmp_path / name).write_text("A red dog runs on a wet road.")
            tar.add(tmp_path / name, name)
    given = ["--train_data", tmp_path / "s.tar", "--datasets_dir", tmp_path, "--output", tmp_path / "n.tsv"]
    with pytest.raises(UserError, match="has images inside of shards or tables, and `negclip` reads image files"):
        programs.run("mine_negatives", *given)


def test_two_processes_write_the_same(programs, inputs, tmp_path):
    programs.run("mine_negatives", *inputs, "--output", tmp_path / "one.tsv", "--five_draws")
    programs.run("mine_negatives", *inputs, "--output", tmp_path / "two.tsv", "--five_draws", nproc=2)
    assert (tmp_path / "one.tsv").read_bytes() == (tmp_path / "two.tsv").read_bytes()


def test_plausible_negatives_are_such_as_the_captions_could_say(programs, tmp_path):
    captions = ["A red dog on a wet beach.", "A red cow on a red beach.", "A wet cow stands.", "A wet dog runs."]

    def mine(*captions):
        lines = ["filepath,title", *(f"{number}.jpg,{text}" for number, text in enumerate(captions))]
        (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
        np.save(tmp_path / "e.npy", embeddings(len(captions)))
        programs.run(
            "mine_negatives", "--train_data", tmp_path / "captions.csv", "--embeddings", tmp_path / "e.npy",
            "--datasets_dir", tmp_path, "--output", tmp_path / "n.tsv", "--neighbours", "1",
            "--plausible", "--overwrite",
        )  # fmt: skip
        return [(row.title, row.neg_caption) for row in read_tsv(tmp_path / "n.tsv")]

    assert mine(*captions, "A wet dog on a red beach.") == [
        ("A red dog on a wet beach.", ("A wet dog on a red beach.",)),
        ("A wet dog on a red beach.", ("A red dog on a wet beach.",)),
    ]
    with pytest.raises(DataError, match=r"none of 2 images .* plausible"):
        mine("A red dog on a wet beach.", "A wet cow stands.")


def test_embeddings_may_have_a_row_per_row_of_the_data(programs, inputs, tmp_path):
    np.save(tmp_path / "rows.npy", np.repeat(np.load(tmp_path / "e.npy"), [2] * 35 + [1], axis=0))
    programs.run("mine_negatives", *inputs, "--output", tmp_path / "images.tsv")
    programs.run("mine_negatives", *inputs, "--embeddings", tmp_path / "rows.npy", "--output", tmp_path / "rows.tsv")
    assert (tmp_path / "images.tsv").read_bytes() == (tmp_path / "rows.tsv").read_bytes()


def test_images_are_compared_by_a_tower_which_encodes_them_once(programs, tmp_path):
    """Four pictures twice, each pair of another colour: the nearest of a picture is its twin's."""
    lines = ["filepath,title"]
    for number in range(12):
        pixels = np.full((32, 32, 3), 20 * (number // 2) + 5, dtype=np.uint8)
        pixels[:16, :: 2 + number % 2] = 250 - 20 * (number // 2)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,A red dog runs on a wet road {number}.")
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    given = ["--train_data", tmp_path / "captions.csv", "--datasets_dir", tmp_path, "--image_model", "RN-micro",
             "--image_resolution", "48", "--neighbours", "2", "--duplicate_above", "2"]  # fmt: skip
    programs.run("mine_negatives", *given, "--output", tmp_path / "one.tsv")
    rows = read_tsv(tmp_path / "one.tsv")
    assert [row.filepath for row in rows] == [f"{number}.png" for number in range(12)]
    for path in tmp_path.glob("*.png"):
        path.unlink()  # a second run needs no image
    programs.run("mine_negatives", *given, "--output", tmp_path / "two.tsv")
    assert read_tsv(tmp_path / "two.tsv") == rows


def test_an_image_that_cannot_be_read_is_named_and_once_mended_forgotten(programs, tmp_path):
    lines = ["filepath,title"]
    for number in range(6):
        Image.fromarray(np.full((32, 32, 3), 40 * number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
        lines.append(f"{number}.png,A red dog runs on a wet road {number}.")
    (tmp_path / "captions.csv").write_text("\n".join(lines) + "\n")
    given = ["--train_data", tmp_path / "captions.csv", "--datasets_dir", tmp_path, "--image_model", "RN-micro",
             "--image_resolution", "48", "--neighbours", "2", "--duplicate_above", "2"]  # fmt: skip
    whole = (tmp_path / "3.png").read_bytes()
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"3\.png"):
        programs.run("mine_negatives", *given, "--output", tmp_path / "n.tsv")
    (tmp_path / "3.png").write_bytes(whole)
    programs.run("mine_negatives", *given, "--output", tmp_path / "n.tsv")
    assert len(read_tsv(tmp_path / "n.tsv")) == 6


def test_what_is_there_is_kept_unless_it_may_be_replaced(programs, inputs, tmp_path):
    (tmp_path / "n.tsv").write_text("mine")
    with pytest.raises(UserError, match=r"n\.tsv is there already: pass --overwrite"):
        programs.run("mine_negatives", *inputs, "--output", tmp_path / "n.tsv")
    assert (tmp_path / "n.tsv").read_text() == "mine"
    programs.run("mine_negatives", *inputs, "--output", tmp_path / "n.tsv", "--overwrite")
    assert len(read_tsv(tmp_path / "n.tsv")) == 35


@pytest.mark.parametrize(
    "change, error, sentence",
    [
        (["--embeddings", "short.npy"], DataError, r"short.npy has the shape \(7, 16\).*36 images or 71 rows"),
        (["--embeddings", "nan.npy"], DataError, "nan.npy: the embedding of image 5 is zero or not finite"),
        (["--embeddings", "none.npy"], UserError, "none.npy cannot be read: No such file"),
        (["--embeddings", "captions.csv"], DataError, "captions.csv is no .npy"),
        (["--captions", "bad.csv"], UserError, "bad.csv has no column 'title'"),
        (["--captions", "none.csv"], UserError, "none.csv is not there"),
        (["--neighbours", "35"], UserError, "35 neighbours of 35 rows cannot be: choose between 1 and 34"),
        (["--method", "guess"], UserError, "--method guess is not one of auto, exact, ivf, hnsw"),
        (["--tagger", "nltk"], UserError, "'nltk' is no tagger"),
    ],
)
def test_a_mistake_is_named(programs, inputs, tmp_path, change, error, sentence):
    np.save(tmp_path / "short.npy", embeddings(7))
    broken = embeddings(36)
    broken[5, 3] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    (tmp_path / "bad.csv").write_text("filepath,text\na.jpg,a cat\n")
    change = [str(tmp_path / part) if "." in part else part for part in change]
    with pytest.raises(error, match=sentence):
        programs.run("mine_negatives", *inputs, *change, "--output", tmp_path / "n.tsv")
    assert not (tmp_path / "n.tsv").exists()
