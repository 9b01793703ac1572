"""Retrieval as a user runs it: a dual encoder, the fused one, re-ranking, folds, interruption, processes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl import retrieval
from clip_vl.datasets.images.image_folders import ImageFolders
from clip_vl.encoding import matching
from clip_vl.encoding.encode import Encoder
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import DataError, Interrupted, UserError
from clip_vl.models.loading.settings import as_record, read_settings

IMAGES = 12
TOWERS = ["--image_model", "RN-micro", "--text_model", "RN-micro", "--image_resolution", "48", "--text_vocab"]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A folder with pairs.tsv, two captions of each picture, a vocabulary, and the weights of a small dual encoder."""
    root, rng = tmp_path_factory.mktemp("pairs"), np.random.default_rng(0)
    for number in range(IMAGES):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(root / f"{number}.png")
    lines = [f"{i}.png\tpicture {i} {word}" for i in range(IMAGES) for word in ("<b>bold</b>", "plain")]
    (root / "pairs.tsv").write_text("filepath\ttitle\n" + "\n".join(lines) + "\n")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "picture", "plain", "bold", *map(str, range(IMAGES))]
    (root / "vocab.txt").write_text("\n".join(words) + "\n")
    return root


@pytest.fixture(scope="module")
def trained(programs, pairs):
    given = ["--train_data", pairs / "pairs.tsv", "--datasets_dir", pairs, "--batch_size", "8", "--epochs", "1",
             "--warmup", "2", "--precision", "fp32"]  # fmt: skip
    programs.run("align", *TOWERS, pairs, *given, "--output", pairs / "align")
    return pairs / "align" / "epoch_1.pt"


def flags(pairs, output, *more, cache=None):
    given = ["--test", pairs / "pairs.tsv", "--datasets_dir", cache or pairs, "--output", output, "--batch_size", "5"]
    return [*given, *more]


def samples(output):
    return [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]


def result(output):
    return json.loads((output / "result.json").read_text())


def test_an_evaluation_writes_the_rank_of_every_query_and_says_its_rules(programs, pairs, trained, tmp_path):
    done = programs.run("retrieval", *flags(pairs, tmp_path / "run", "--load", trained, "--gallery", "4"))
    rows, found = samples(tmp_path / "run"), result(tmp_path / "run")
    assert len(rows) == 3 * IMAGES and len({row["id"] for row in rows}) == 3 * IMAGES
    texts = [row for row in rows if row["group"] == "text_to_image"]
    assert found["text_to_image_recall@1"] == pytest.approx(100 * np.mean([row["correct"] for row in texts]))
    assert found["text_to_image_mean_rank"] == pytest.approx(np.mean([row["rank"] for row in texts]))
    assert 0 < found["modality_gap"] < 2 and abs(found["positive_similarity"]) <= 1
    assert found["images"] == IMAGES and found["texts"] == 2 * IMAGES and "tie" in found["tie_rule"]
    assert f"{found['mean_recall']:.2f}" in done.stdout
    cards = json.loads((tmp_path / "run" / "gallery.json").read_text())["cards"]
    assert len(cards) == 8 and all(len(card["predictions"]) == 5 for card in cards)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "&lt;b&gt;bold" in page and "<b>bold" not in page


def test_an_evaluation_in_parts_or_by_several_processes_ends_with_the_same_bytes(
    programs, pairs, trained, tmp_path, monkeypatch
):
    """Interrupted after the images: the same command encodes the texts alone, and the files are those of one go."""
    programs.run("retrieval", *flags(pairs, tmp_path / "whole", "--load", trained, cache=tmp_path / "a"))
    texts, asked = retrieval.TextsOf, []

    def interrupted(*given):
        asked.append(given)
        if len(asked) == 1:
            raise Interrupted("now")
        return texts(*given)

    monkeypatch.setattr(retrieval, "TextsOf", interrupted)
    given = flags(pairs, tmp_path / "broken", "--load", trained, cache=tmp_path / "b")
    with pytest.raises(Interrupted):
        programs.run_here("retrieval", *given)
    assert not (tmp_path / "broken" / "result.json").exists()
    programs.run("retrieval", *given)
    programs.run("retrieval", *flags(pairs, tmp_path / "two", "--load", trained, cache=tmp_path / "c"), nproc=2)
    for other in ("broken", "two"):
        for name in ("samples.jsonl", "gallery.json"):
            assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / other / name).read_bytes()
        a, b = (result(tmp_path / run) for run in ("whole", other))
        assert {k: v for k, v in a.items() if k != "inputs"} == {k: v for k, v in b.items() if k != "inputs"}
    again = programs.run("retrieval", *given)
    assert "already" in again.stdout


def test_saliency_is_on_the_cards_and_changes_no_score(programs, pairs, trained, tmp_path):
    """Three cards of eight, best and worst of both ways in turn; with 0 none, and all other bytes the same."""
    for number in ("0", "3"):
        given = flags(pairs, tmp_path / number, "--load", trained, "--gallery", "4", "--saliency", number)
        programs.run_here("retrieval", *given)
    none, some = (json.loads((tmp_path / number / "gallery.json").read_text()) for number in ("0", "3"))
    assert "note" not in none and not any("saliency" in card for card in none["cards"])
    assert [n for n, card in enumerate(some["cards"]) if "saliency" in card] == [0, 2, 4]
    found = [card.pop("saliency") for card in some["cards"] if "saliency" in card]
    assert some["cards"] == none["cards"] and some["note"].startswith("Saliency by Grad-CAM")
    assert found[0][0][0] == some["cards"][0]["title"] and found[2][0][0] == some["cards"][4]["truth"][0][0]
    pages = [(tmp_path / number / "report.html").read_text() for number in ("0", "3")]
    assert [page.count('alt="saliency"') for page in pages] == [0, 3]
    assert all(uri in pages[1] for ((_, uri),) in found) and "Saliency by Grad-CAM" in pages[1]
    for name in ("samples.jsonl", "result.json"):
        assert (tmp_path / "0" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_folds_are_scored_apart(programs, pairs, trained, tmp_path):
    """Among 4 images instead of 12 no query can rank worse, and the score is the mean over the folds."""
    programs.run("retrieval", *flags(pairs, tmp_path / "all", "--load", trained))
    programs.run("retrieval", *flags(pairs, tmp_path / "folds", "--load", trained, "--fold_size", "4"))
    whole, folds = ({row["id"]: row["rank"] for row in samples(tmp_path / name)} for name in ("all", "folds"))
    assert whole.keys() == folds.keys() and all(folds[name] <= whole[name] for name in whole)
    assert max(rank for name, rank in folds.items() if name.startswith("text_to_image")) <= 4
    found = result(tmp_path / "folds")
    assert found["folds"] == 3 and "folds of 4" in found["split"]
    assert found["text_to_image_mean_rank"] == pytest.approx(
        np.mean([rank for name, rank in folds.items() if name.startswith("text_to_image")])
    )


def test_words_and_pictures_out_of_order_are_recorded_and_encoded_apart(
    programs, pairs, trained, tmp_path, monkeypatch
):
    """Shuffled words are encoded anew and the pictures are not, and the other way round."""
    sides, encode = [], Encoder._encode

    def spied(encoder, dataset, *rest):
        sides.append(type(dataset).__name__)
        return encode(encoder, dataset, *rest)

    monkeypatch.setattr(Encoder, "_encode", spied)
    given = {"plain": (), "words": ("--perturb_text", "all_words", "--clean_captions"),
             "parts": ("--perturb_images", "patches")}  # fmt: skip
    encoded = {}
    for name, more in given.items():
        programs.run("retrieval", *flags(pairs, tmp_path / name, "--load", trained, *more, cache=tmp_path / "cache"))
        encoded[name], sides[:] = set(sides), ()
    assert encoded == {"plain": {"ImagesOf", "TextsOf"}, "words": {"TextsOf"}, "parts": {"ImagesOf"}}
    assert result(tmp_path / "plain")["perturbed"] == {"image": {}, "text": {}}
    assert result(tmp_path / "words")["perturbed"]["text"] == {
        "perturb_text": "all_words", "seed": 9595, "tagger": None, "clean_captions": True
    }  # fmt: skip
    plain, words = ([row["query"] for row in samples(tmp_path / name) if "query" in row] for name in ("plain", "words"))
    assert plain != words and [sorted(text.lower().split()) for text in plain] == [sorted(t.split()) for t in words]
    with pytest.raises(UserError, match="other flags, weights or data"):
        programs.run("retrieval", *flags(pairs, tmp_path / "words", "--load", trained, cache=tmp_path / "cache"))


@pytest.fixture(scope="module")
def fused(programs, pretrained, shapes_root, tmp_path_factory):
    """Flags of an evaluation of the pre-trained fused encoder on a few built-in scenes."""
    cache = tmp_path_factory.mktemp("cache")
    given = ["--test", f"shapes:{shapes_root}@test", "--dataset_size", "6", "--fused", pretrained]
    return [*given, "--datasets_dir", cache, "--batch_size", "16", "--gallery", "2"]


def test_the_fused_encoder_scores_pairs_as_in_pre_training(programs, fused, pretrained, shapes_root, tmp_path):
    """Scores of the first image against the model itself, fed with the pixels that pre-training reads."""
    kept = {}
    original = matching.score_pairs

    def spied(keys, pairs, *rest):
        kept.update(pairs=pairs, scores=original(keys, pairs, *rest))
        return kept["scores"]

    matching.score_pairs = spied
    try:
        programs.run("retrieval", *fused, "--output", tmp_path / "run")
    finally:
        matching.score_pairs = original
    from clip_vl.datasets.images.canvas import canvas_size, place_on_canvas
    from clip_vl.datasets.lxmert.wordpiece import load_tokenizer, pad_tokens
    from clip_vl.models.fused.build import bert_folder, build_encoder
    from clip_vl.models.fused.checkpoints import read_checkpoint
    from clip_vl.models.fused.encoder import VLPretrainer
    from clip_vl.models.fused.scorer import _recorded_flags
    from clip_vl.models.loading.weights import load_weights

    pairs, given = kept["pairs"], _recorded_flags(pretrained)
    state, _ = read_checkpoint(pretrained)
    model = VLPretrainer(build_encoder(given, state)).eval()
    load_weights(model, state, ignore=("answer_head.",))
    source = ImageFolders(shapes_root)
    name = pairs.source.name(int(pairs.rows[0]))
    image_id = name.rpartition("/")[2].removesuffix(".jpg")
    size = Image.open(name).size[::-1]
    picture = source.load(image_id, given.image_size_min, given.image_size_max, list(size))
    images, _ = place_on_canvas([picture], canvas_size(*size, given.image_size_min, given.image_size_max))
    texts = [pairs.source.text(int(n)) for n in pairs.numbers]
    batch = pad_tokens(load_tokenizer(bert_folder(given)).encode(texts, given.max_length))
    with torch.no_grad():
        none = torch.full((len(texts),), -1)
        same = torch.zeros(len(texts), dtype=torch.long)
        masked = torch.full_like(batch["input_ids"], -1)
        logits = model(images, batch["input_ids"], batch["attention_mask"], masked, none, same)["match_logits"]
    expected = (logits[:, 1] - logits[:, 0]).numpy()
    assert kept["scores"][: len(texts)] == pytest.approx(expected, abs=1e-4)
    assert result(tmp_path / "run")["scored_by"] == "fused encoder on all pairs"
    assert (tmp_path / "run" / "report.html").read_text().count('alt="saliency"') == 4


def test_scores_are_kept_for_one_way_to_read_a_checkpoint(programs, fused, pretrained, tmp_path, monkeypatch):
    """The same weights behind pooled grids judge otherwise, and do not get what was kept of them without."""
    found, original = [], matching.score_pairs
    monkeypatch.setattr(matching, "score_pairs", lambda *args: found.append(original(*args)) or found[-1])
    path, copy = Path(f"{pretrained}_LXRT.pth"), tmp_path / f"{pretrained.name}_LXRT.pth"
    pooled = read_settings(path).values | {"use_max_pooling": True}
    save_plain(copy, torch.load(path, weights_only=True), as_record(pooled))
    programs.run("retrieval", *fused, "--output", tmp_path / "plain")
    programs.run("retrieval", *fused, "--fused", tmp_path / pretrained.name, "--output", tmp_path / "run")
    plain, pooled = found
    assert not np.allclose(plain, pooled, atol=1e-5)


def test_reranking_all_candidates_is_scoring_all_pairs(programs, fused, trained, pairs, tmp_path):
    programs.run("retrieval", *fused, "--output", tmp_path / "all")
    dual = ["--load", trained, "--text_vocab", pairs]
    programs.run("retrieval", *fused, *dual, "--rerank", "1000", "--output", tmp_path / "everything")
    programs.run("retrieval", *fused, *dual, "--rerank", "1", "--output", tmp_path / "first")
    programs.run("retrieval", *[f for f in fused if f not in ("--fused", fused[fused.index("--fused") + 1])], *dual,
                 "--output", tmp_path / "dual")  # fmt: skip
    ranks = {n: [row["rank"] for row in samples(tmp_path / n)] for n in ("all", "everything", "first", "dual")}
    assert ranks["all"] == ranks["everything"]
    assert ranks["first"] == ranks["dual"] != ranks["all"]  # one candidate has no order to change


@pytest.mark.parametrize(
    "more, error, sentence",
    [
        (["--test", ""], UserError, "--test names no data: pass one of coco-karpathy-5k"),
        (["--rerank", "4"], UserError, "pass --fused"),
        (["--bert", "x"], UserError, "--bert x is the text model of a fused encoder: pass --fused as well"),
        (["--rerank", "-1"], UserError, "at least 0"),
        (["--saliency", "-1"], UserError, "--saliency -1 must be at least 0"),
        (["--captions_per_image", "0"], UserError, "at least 1"),
        (["--fused", "nowhere/Epoch01"], UserError, "no checkpoint nowhere/Epoch01"),
        (["--test", "flickr30k-karpathy"], UserError, "is not there"),
        (["--output", ""], UserError, "--output"),
    ],
)
def test_bad_input_gets_one_sentence(programs, pairs, tmp_path, more, error, sentence):
    with pytest.raises(error, match=sentence):
        programs.run_here("retrieval", *flags(pairs, tmp_path / "run", *TOWERS, pairs), *more)


def test_a_damaged_image_ends_the_evaluation_with_its_name(programs, pairs, trained, tmp_path):
    shutil.copytree(pairs, tmp_path / "data", ignore=shutil.ignore_patterns("align", "cache"))
    (tmp_path / "data" / "3.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"evaluation needs every image: .*3\.png"):
        programs.run_here("retrieval", *flags(tmp_path / "data", tmp_path / "run", "--load", trained))
