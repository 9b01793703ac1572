"""From captions and embeddings to a table of negatives: whole, the same from any number of processes, and counted."""

import json

import numpy as np
import pytest

from clip_vl.datasets.caption_swaps import folded
from clip_vl.datasets.negative_table import NegativeLMDB, read_tsv, row_id
from clip_vl.engine.errors import DataError, UserError

COLOURS, ANIMALS, PLACES = ("red", "blue", "green"), ("dog", "cat", "horse", "cow"), ("beach", "road", "field")


def embeddings(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 16)).astype(np.float32)


@pytest.fixture
def inputs(tmp_path):
    """36 images with two captions each, one of which has nothing to swap; image 35 has no other."""
    images = []
    for number in range(36):
        colour, animal, place = COLOURS[number % 3], ANIMALS[number // 3 % 4], PLACES[number // 12]
        captions = [f"A {colour} {animal} runs on a wet {place}.", "Nothing here."]
        images.append({"filepath": "val2014", "filename": f"{number}.jpg", "split": "train",
                       "sentences": [{"raw": text} for text in captions[number == 35 :]]})  # fmt: skip
    images.append({"filename": "test.jpg", "split": "test", "sentences": [{"raw": "A man on a horse."}]})
    (tmp_path / "captions.json").write_text(json.dumps({"images": images}))
    rows = embeddings(36)
    rows[4] = 2 * rows[3]  # the same picture, of another length
    np.save(tmp_path / "e.npy", rows)
    return ["--captions", tmp_path / "captions.json", "--split", "train", "--embeddings", tmp_path / "e.npy"]


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


def test_two_processes_write_the_same(programs, inputs, tmp_path):
    programs.run("mine_negatives", *inputs, "--output", tmp_path / "one.tsv", "--five_draws")
    programs.run("mine_negatives", *inputs, "--output", tmp_path / "two.tsv", "--five_draws", nproc=2)
    assert (tmp_path / "one.tsv").read_bytes() == (tmp_path / "two.tsv").read_bytes()


def test_a_table_of_captions_with_a_row_per_caption_gives_the_same(programs, inputs, tmp_path):
    pairs = [(f"val2014/{image['filename']}", sentence["raw"])
             for image in json.loads((tmp_path / "captions.json").read_text())["images"][:36]
             for sentence in image["sentences"]]  # fmt: skip
    (tmp_path / "c.csv").write_text("filepath,title\n" + "".join(f"{image},{text}\n" for image, text in pairs))
    np.save(tmp_path / "rows.npy", np.repeat(np.load(tmp_path / "e.npy"), [2] * 35 + [1], axis=0))
    programs.run("mine_negatives", *inputs, "--output", tmp_path / "json.tsv")
    given = ["--captions", tmp_path / "c.csv", "--embeddings", tmp_path / "rows.npy"]
    programs.run("mine_negatives", *given, "--output", tmp_path / "csv.tsv")
    assert (tmp_path / "json.tsv").read_bytes() == (tmp_path / "csv.tsv").read_bytes()


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
        (["--embeddings", "short.npy"], DataError, r"short.npy has the shape \(7, 16\).*36 images or 71 captions"),
        (["--embeddings", "nan.npy"], DataError, "nan.npy: the embedding of image 5 is zero or not finite"),
        (["--embeddings", "none.npy"], UserError, "none.npy cannot be read: No such file"),
        (["--embeddings", "captions.json"], DataError, "captions.json is no .npy"),
        (["--captions", "bad.csv"], DataError, "bad.csv:1: no column title; it has filepath, text"),
        (["--captions", "none.csv"], UserError, "none.csv cannot be read: No such file"),
        (["--split", "minival"], DataError, "captions.json has no captions of split minival"),
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


def test_without_embeddings_the_program_asks_for_them(programs, inputs, tmp_path):
    with pytest.raises(UserError, match="pass --embeddings"):
        programs.run("mine_negatives", *inputs[:4], "--output", tmp_path / "n.tsv")
