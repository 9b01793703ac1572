"""NegCLIP as a user runs it, and the shapes that its batches must have."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.datasets.images.crops import EvalCrop
from clip_vl.datasets.negatives.batches import NegativePairs, open_negatives
from clip_vl.datasets.negatives.table import NegativeRow, write_lmdb, write_tsv
from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import DataError, UserError

ROWS = 16
SMALL = [
    "--image_model",
    "ViT-tiny",
    "--text_model",
    "ViT-tiny",
    "--image_resolution",
    "48",
    "--batch_size",
    "4",
    "--epochs",
    "2",
    "--warmup",
    "2",
    "--lr",
    "1e-4",
    "--report_step",
    "1",
    "--precision",
    "fp32",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """A folder with negatives.tsv and .lmdb: pictures with two false captions and three neighbours each."""
    root, rng = tmp_path_factory.mktemp("negatives"), np.random.default_rng(0)
    for number in range(ROWS):
        Image.fromarray(rng.integers(0, 255, (48, 48, 3), dtype=np.uint8)).save(root / f"{number}.png")
    rows = [
        NegativeRow(
            f"caption {i} a b",
            f"{i}.png",
            (f"false {i} b a", f"wrong {i} b a"),
            tuple((i + step) % ROWS for step in (1, 2, 3)),
        )
        for i in range(ROWS)
    ]
    write_tsv(root / "negatives.tsv", rows)
    write_lmdb(root / "negatives.lmdb", rows)
    words = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "caption",
        "false",
        "wrong",
        "a",
        "b",
        *map(str, range(ROWS)),
    ]
    (root / "vocab.txt").write_text("\n".join(words) + "\n")
    (root / "pairs.csv").write_text("filepath,title\n" + "".join(f"{i}.png,caption {i} a b\n" for i in range(ROWS)))
    return root


def flags(table, output, *more):
    given = [
        "--train_negatives",
        table / "negatives.tsv",
        "--text_vocab",
        table,
        "--datasets_dir",
        table,
        "--output",
        output,
    ]
    return [str(flag) for flag in (*given, *SMALL, *more)]


def texts_of(batch):
    return batch["tokens"]["texts"]


def pairs_of(path, **kinds):
    return NegativePairs(open_negatives(path), EvalCrop(32), lambda texts, rng: {"texts": texts}, 0, **kinds)


@pytest.mark.parametrize("form", ["tsv", "lmdb"])
def test_a_batch_holds_four_texts_and_two_images_of_each_anchor(table, form):
    """The published collator dropped every entry without an image, all negative captions: 2B texts were left."""
    pairs = pairs_of(table / f"negatives.{form}")
    rows = pairs.anchors[:4]
    batch = pairs[(0, rows)]
    assert batch["images"].shape == (8, 3, 32, 32) and len(texts_of(batch)) == 16
    captions, negatives = texts_of(batch)[:8], texts_of(batch)[8:]
    for place, (caption, negative) in enumerate(zip(captions, negatives)):
        row = pairs.table.rows[int(batch["image_ids"][place])]
        assert caption == row.title and negative in row.neg_caption
    for anchor, neighbour in zip(batch["image_ids"][:4], batch["image_ids"][4:]):
        assert int(neighbour) in pairs.table.neighbours(int(anchor))
    assert torch.equal(batch["rows"], torch.as_tensor(rows))


def test_negatives_are_drawn_anew_in_each_epoch_and_the_same_in_each_process(table):
    pairs = pairs_of(table / "negatives.tsv")
    draws = [texts_of(pairs[(epoch, np.arange(8))]) for epoch in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_both_forms_of_the_table_hold_the_same(table):
    one, two = (open_negatives(table / f"negatives.{form}") for form in ("tsv", "lmdb"))
    near = [{t.caption(row): {t.caption(n) for n in t.neighbours(row)} for row in range(ROWS)} for t in (one, two)]
    assert near[0] == near[1]


def test_an_anchor_without_negatives_is_none_and_never_drawn(table, tmp_path):
    rows = list(open_negatives(table / "negatives.tsv").rows)
    rows[5] = rows[5]._replace(neg_caption=())
    write_tsv(tmp_path / "negatives.tsv", rows)
    anchors = pairs_of(tmp_path / "negatives.tsv").anchors.tolist()
    assert anchors == [row for row in range(ROWS) if row not in (2, 3, 4, 5)]  # 5 itself, and those that it is near to


def test_a_run_leaves_its_files_and_resumes_to_the_same_bits(programs, table, tmp_path):
    valid = ["--valid_data", table / "pairs.csv"]
    programs.run("negclip", *flags(table, tmp_path / "whole", *valid))
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert {"args.json", "log.jsonl", "epoch_2.pt", "best.pt", "result.json", "report.html", "checkpoints"} <= names
    programs.run("negclip", *flags(table, tmp_path / "broken", *valid, "--stop_after_epoch", "1"))
    programs.run("negclip", *flags(table, tmp_path / "broken", *valid, "--resume"))
    programs.same_run(tmp_path / "whole", tmp_path / "broken")


def test_training_ends_with_the_schedule_after_max_steps(programs, table, tmp_path):
    programs.run("negclip", *flags(table, tmp_path / "run", "--max_steps", "5"))
    rows = [json.loads(line) for line in programs.log_rows(tmp_path / "run")]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4] and rows[-1]["lr_image"] < 3e-5


def test_lora_learns_beside_the_weights_and_is_merged_into_what_is_written(programs, table, tmp_path):
    programs.run("negclip", *flags(table, tmp_path / "lora", "--lora_r", "2", "--epochs", "1", "--lr", "1e-2"))
    programs.run("negclip", *flags(table, tmp_path / "plain", "--epochs", "1", "--lr", "0"))
    tuned, start = (torch.load(tmp_path / n / "epoch_1.pt", weights_only=True)["state_dict"] for n in ("lora", "plain"))
    assert tuned.keys() == start.keys()
    changed = {name for name in tuned if not torch.equal(tuned[name], start[name])}
    assert any("in_proj_weight" in name for name in changed) and all("transformer" in name for name in changed)
    saved = load_latest(tmp_path / "lora" / "checkpoints")[1]["model"]
    assert any(".lora_A." in name for name in saved)


BAD = [
    (["--train_negatives", "nothing.tsv"], UserError, r"nothing.tsv cannot be read"),
    (["--images_dir", "/nowhere"], DataError, r"images in a row cannot be read|cannot be read"),
]


@pytest.mark.parametrize("more, error, sentence", BAD, ids=["no table", "no images"])
def test_bad_input_gets_one_sentence(programs, table, tmp_path, more, error, sentence):
    with pytest.raises(error, match=sentence):
        programs.run_here("negclip", *flags(table, tmp_path / "run", *more))


def test_a_table_that_leaves_its_folder_is_refused(table, tmp_path):
    rows = list(open_negatives(table / "negatives.tsv").rows)
    rows[0] = rows[0]._replace(filepath="../secret.png")
    write_tsv(tmp_path / "negatives.tsv", rows)
    with pytest.raises(DataError, match=r"row 0.*leaves the folder"):
        open_negatives(tmp_path / "negatives.tsv")
