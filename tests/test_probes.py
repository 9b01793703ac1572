"""The probes program end to end on made pictures with a random model: near chance, resumable, the same on ranks."""

import json

import numpy as np
import pytest
from PIL import Image

from clip_vl.datasets.probes.images import cut, distinct_by_tokens
from clip_vl.engine.errors import DataError, Interrupted, UserError

WORDS = ["cup", "book", "desk", "dog", "cat", "red", "blue", "old", "on", "under", "near", "a", "the", "and", "not"]
PICTURES = 24


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A folder of pictures of noise and annotations of four probes."""
    root = tmp_path_factory.mktemp("probes")
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        Image.fromarray(rng.integers(0, 255, (40, 56, 3), dtype=np.uint8)).save(root / f"{number}.jpg")
    (root / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")

    def sentence():
        return " ".join(rng.choice(WORDS, 5))

    entries = {n: {"filename": f"{n % PICTURES}.jpg", "caption": sentence(), "negative_caption": sentence()}
               for n in range(120)}  # fmt: skip
    entries[120] = {"filename": "gone.jpg", "caption": "a cup", "negative_caption": "a dog"}
    entries[121] = {"filename": "broken.jpg", "caption": "a cup", "negative_caption": "a dog"}
    entries[122] = {"filename": "0.jpg", "caption": "a cup", "negative_caption": "A cup"}
    (root / "broken.jpg").write_bytes(b"no picture")
    (root / "sugarcrepe").mkdir()
    (root / "sugarcrepe/swap_att.json").write_text(json.dumps(entries))
    wino = [{"id": n, "image_0": f"{n}.jpg", "image_1": f"{n + 1}.jpg", "caption_0": sentence(),
             "caption_1": sentence(),
             "collapsed_tag": "Object"} for n in range(PICTURES - 1)]  # fmt: skip
    (root / "winoground").mkdir()
    (root / "winoground/examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wino))
    (root / "vg_attribution").mkdir()
    boxes = [{"image_path": f"{n}.jpg", "true_caption": sentence(), "false_caption": sentence(),
              "attributes": ["a", "b"],
              "bbox_x": 2, "bbox_y": 1, "bbox_w": 30 + n * 2, "bbox_h": 20} for n in range(PICTURES)]  # fmt: skip
    (root / "vg_attribution/visual_genome_attribution.json").write_text(json.dumps(boxes))
    rows = [{"uid": f"{n}", "img0": f"{n % 24}.jpg", "sent": f"{sentence()}", "label": n % 2} for n in range(60)]
    (root / "nlvr").mkdir()
    (root / "nlvr/dev.json").write_text(json.dumps(rows))
    return root


def flags(root, output, *more):
    given = ["--probes", "sugarcrepe", "winoground", "vg_attribution", "nlvr", "--annotations", root, "--images_dir",
             root, "--image_model", "RN-micro", "--text_model", "RN-micro", "--text_vocab", root,
             "--image_resolution", "32",
             "--batch_size", "8", "--save_every", "2", "--datasets_dir", root, "--output", output]  # fmt: skip
    return [*given, *more]


@pytest.fixture(scope="module")
def whole(programs, root, tmp_path_factory):
    output = tmp_path_factory.mktemp("snap") / "whole"
    return output, programs.run("probes", *flags(root, output)).stdout


def files_of(folder):
    return {name: (folder / name).read_bytes() for name in ("samples.jsonl", "result.json", "gallery.json")}


def table_in(folder):
    rows = json.loads((folder / "result.json").read_text())["table"]
    return {(row["probe"], row["row"], row["metric"]): row for row in rows}


def test_a_random_model_is_near_chance_and_every_item_has_its_row(whole):
    output, text = whole
    result, table = json.loads((output / "result.json").read_text()), table_in(output)
    row = table["sugarcrepe", "swap_att", "accuracy"]
    assert (row["n"], row["missing"], row["ties"]) == (121, 2, 1)  # the tie: captions that differ in case alone
    assert row["low"] - 5 < 50 < row["high"] + 5 and row["pessimistic"] == row["score"] < row["optimistic"]
    # Pictures that are alike to a random model prefer the same caption: text is then below the chance of orders.
    wino = table["winoground", "all", "text"]
    assert wino["n"] == 23 and wino["low"] <= 25 and wino["references"]["human F"] == 89.5
    assert table["vg_attribution", "micro", "accuracy"]["n"] == PICTURES
    assert result["defects"]["vg_attribution"]["boxes that reach out of their picture, clamped"] == 11
    nlvr = table["nlvr", "dev", "accuracy"]
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    right = [row["decision"] == int(row["id"].rpartition("/")[2]) % 2 for row in rows if row["probe"] == "nlvr"]
    assert nlvr["n"] == len(right) == 60 and nlvr["low"] < 50 < nlvr["high"]
    assert nlvr["score"] == pytest.approx(100 * np.mean(right), abs=1e-4)
    assert len(rows) == len({row["id"] for row in rows}) == 123 + 23 + 24 + 60
    assert {row["image"] for row in rows if "missing_image" in row} == {"gone.jpg", "broken.jpg"}
    scored = [row["correct"] for row in rows if row["probe"] == "sugarcrepe" and "correct" in row]
    assert 100 * np.mean(scored) == pytest.approx(row["score"], abs=1e-4)
    assert "swap_att" in text and "broken.jpg: is not an image" in text
    assert not (output / "work").exists() and (output / "report.html").is_file()
    assert {"weights", "tokenizer", "preprocessing", "annotations"} <= set(result["digests"])


def test_the_scores_are_cosines_of_the_towers_features(whole, root):
    from types import SimpleNamespace

    from clip_vl.datasets.images.crops import EvalCrop
    from clip_vl.flags.parser import parse
    from clip_vl.models.dual.build import open_dual_encoder
    from clip_vl.probes import ProbesFlags

    args = parse(ProbesFlags, "", [str(flag) for flag in flags(root, "x")])
    model = open_dual_encoder(args.towers(), "cpu")
    first = json.loads((whole[0] / "samples.jsonl").read_text().splitlines()[0])
    entry = SimpleNamespace(**json.loads((root / "sugarcrepe/swap_att.json").read_text())["0"])
    crop = EvalCrop(32, model.image_tower.interpolation, model.image_tower.crop, model.image_tower.short_side)
    image = model.encode_image(crop((root / entry.filename).read_bytes())[None]).detach().numpy()
    texts = model.encode([entry.caption, entry.negative_caption])
    assert first["scores"][0] == pytest.approx((image @ texts.T)[0], abs=1e-5)


def test_mistakes_are_shown_the_most_confident_first(whole):
    cards = json.loads((whole[0] / "gallery.json").read_text())["cards"]
    assert len(cards) == 24 and not any(card["correct"] for card in cards)
    assert all(card["image"].startswith("data:image/jpeg") for card in cards)
    margins = [float(card["note"].rpartition(" ")[2]) for card in cards if card["note"].startswith("sugarcrepe")]
    assert margins == sorted(margins) and margins[0] < 0


def test_the_first_mistakes_show_where_both_captions_look(whole, programs, root, tmp_path):
    gallery = json.loads((whole[0] / "gallery.json").read_text())
    cards = gallery["cards"]
    pictures = [1 if "nlvr" in card["note"] else 2 for card in cards[:8]]
    assert [len(card.get("saliency", [])) for card in cards] == pictures + [0] * 16
    for card in (card for card in cards[:8] if "nlvr" not in card["note"]):
        assert card["saliency"][0][0] == card["title"] and card["saliency"][1][0] != card["title"]
    assert gallery["note"].startswith("Saliency by Grad-CAM")
    page = (whole[0] / "report.html").read_text()
    assert page.count('alt="saliency"') == sum(len(card.get("saliency", [])) for card in cards)
    programs.run_here("probes", *flags(root, tmp_path / "none", "--saliency", "0"))
    assert 'alt="saliency"' not in (tmp_path / "none/report.html").read_text()
    for name in ("samples.jsonl", "result.json"):
        assert (tmp_path / "none" / name).read_bytes() == (whole[0] / name).read_bytes()


def test_an_interrupted_evaluation_goes_on_to_the_same_files(programs, root, whole, tmp_path, monkeypatch):
    from clip_vl.engine import evaluation_run

    class StopAfter:
        asked = 0

        def __bool__(self):
            StopAfter.asked += 1
            return StopAfter.asked == 3

    monkeypatch.setattr(evaluation_run, "StopRequest", StopAfter)
    with pytest.raises(Interrupted, match=r"part 3 of \d+ of the captions"):
        programs.run("probes", *flags(root, tmp_path / "broken"))
    assert len(list((tmp_path / "broken/work").glob("*.npz"))) == 3
    with pytest.raises(UserError, match="other flags, weights or data"):
        programs.run("probes", *flags(root, tmp_path / "broken", "--seed", "1"))
    programs.run("probes", *flags(root, tmp_path / "broken"))
    assert files_of(whole[0]) == files_of(tmp_path / "broken")
    assert "already" in programs.run("probes", *flags(root, tmp_path / "broken")).stdout


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_write_what_one_writes(programs, root, whole, tmp_path, ranks):
    programs.run("probes", *flags(root, tmp_path / "many"), nproc=ranks)
    assert files_of(whole[0]) == files_of(tmp_path / "many")


def fused_flags(root, pretrained, output, *more):
    """Of an evaluation by the matching head, on the same annotations."""
    given = ["--probes", "sugarcrepe", "winoground", "vg_attribution", "nlvr", "--annotations", root, "--images_dir",
             root, "--fused", pretrained, "--batch_size", "8", "--save_every", "8", "--datasets_dir", root]  # fmt: skip
    return [*given, "--output", output, *more]


@pytest.fixture(scope="module")
def judged(programs, root, pretrained, tmp_path_factory):
    """The folder of a whole evaluation by the matching head, what it printed, and how often a picture was seen."""
    from clip_vl.models.fused.scorer import FusedScorer

    output, seen, see = tmp_path_factory.mktemp("snap") / "fused", [], FusedScorer.see
    FusedScorer.see = lambda self, images: seen.append(tuple(images.shape)) or see(self, images)
    try:
        text = programs.run("probes", *fused_flags(root, pretrained, output)).stdout
    finally:
        FusedScorer.see = see
    return output, text, seen


def test_the_matching_head_judges_every_probe_and_sees_each_crop_once(judged):
    output, text, seen = judged
    result = json.loads((output / "result.json").read_text())
    assert result["scored_by"] == "matching head of the fused encoder" and result["checkpoint"].endswith("Epoch01")
    assert result["encoded"]["pictures"] == 2 * PICTURES + 1  # whole ones, boxes, and the one that is no picture
    assert len(seen) == 2 * PICTURES and set(seen) <= {(1, 3, 64, 96), (1, 3, 96, 64)}
    table = {(row["probe"], row["row"], row["metric"]): row for row in result["table"]}
    row = table["sugarcrepe", "swap_att", "accuracy"]
    assert (row["n"], row["missing"]) == (121, 2) and row["ties"] >= 1  # "a cup" and "A cup" are the same tokens
    assert "broken.jpg: is not an image" in text and table["vg_attribution", "micro", "accuracy"]["n"] == PICTURES
    rows = [json.loads(line) for line in (output / "samples.jsonl").read_text().splitlines()]
    assert {row["image"] for row in rows if "missing_image" in row} == {"gone.jpg", "broken.jpg"}
    nlvr = [row for row in rows if row["probe"] == "nlvr"]
    assert [row["decision"] for row in nlvr] == [int(row["scores"][0][0] > 0) for row in nlvr]  # probability 0.5
    assert len(nlvr) == 60


def test_the_first_mistakes_of_the_matching_head_show_where_both_captions_look(judged):
    gallery = json.loads((judged[0] / "gallery.json").read_text())
    pictures = [1 if "nlvr" in card["note"] else 2 for card in gallery["cards"][:8]]
    assert [len(card.get("saliency", [])) for card in gallery["cards"]] == pictures + [0] * 16
    assert gallery["note"].startswith("Saliency by Grad-CAM")


def test_the_scores_are_the_log_odds_of_the_pretrained_head(judged, root, pretrained):
    """An item with a box against the model itself, fed with the pixels that Pillow cuts out."""
    import torch
    from transformers import BertTokenizerFast

    from clip_vl.datasets.images.canvas import canvas_size, place_on_canvas, resized_size
    from clip_vl.datasets.images.decoding import resize
    from clip_vl.models.fused.build import bert_folder, build_encoder
    from clip_vl.models.fused.checkpoints import read_checkpoint
    from clip_vl.models.fused.encoder import VLPretrainer
    from clip_vl.models.fused.scorer import _recorded_flags
    from clip_vl.models.loading.weights import load_weights

    given, (state, _) = _recorded_flags(pretrained), read_checkpoint(pretrained)
    model = VLPretrainer(build_encoder(given, state)).eval()
    load_weights(model, state, ignore=("answer_head.",))
    entry = json.loads((root / "vg_attribution/visual_genome_attribution.json").read_text())[3]
    left, top, width, height = (entry[f"bbox_{name}"] for name in "xywh")
    with Image.open(root / entry["image_path"]) as picture:
        part = np.array(picture.crop((left, top, min(left + width, 56), top + height)))
    size = part.shape[:2]
    picture = resize(torch.from_numpy(part).permute(2, 0, 1), resized_size(*size, 64, 96))
    images, _ = place_on_canvas([picture], canvas_size(*size, 64, 96))
    tokenizer = BertTokenizerFast(str(bert_folder(given) / "vocab.txt"))
    expected = []
    for caption in (entry["true_caption"], entry["false_caption"]):
        tokens = tokenizer(caption, return_tensors="pt", truncation=True, max_length=given.max_length)
        with torch.no_grad():
            *_, pooled = model.bert(images, tokens["input_ids"], tokens["attention_mask"])
            probability = model.cls.seq_relationship(pooled).softmax(1)[0, 1].item()
        expected.append(np.log(probability / (1 - probability)))
    rows = [json.loads(line) for line in (judged[0] / "samples.jsonl").read_text().splitlines()]
    row = next(row for row in rows if row["probe"] == "vg_attribution" and row["image"] == entry["image_path"])
    assert row["scores"][0] == pytest.approx(expected, abs=1e-4)


def test_three_processes_write_what_one_writes_by_the_matching_head(programs, root, pretrained, judged, tmp_path):
    programs.run("probes", *fused_flags(root, pretrained, tmp_path / "many"), nproc=3)
    assert files_of(judged[0]) == files_of(tmp_path / "many")


def test_an_interrupted_judgement_by_the_matching_head_goes_on(
    programs, root, pretrained, judged, tmp_path, monkeypatch
):
    from clip_vl.engine import evaluation_run

    asked = iter([False, True])
    monkeypatch.setattr(evaluation_run.StopRequest, "__bool__", lambda _: next(asked, False))
    with pytest.raises(Interrupted, match="part 2 of 7 of the scores"):
        programs.run("probes", *fused_flags(root, pretrained, tmp_path / "broken"))
    programs.run("probes", *fused_flags(root, pretrained, tmp_path / "broken"))
    assert files_of(judged[0]) == files_of(tmp_path / "broken")


def test_the_blind_baseline_opens_no_picture(programs, root, tmp_path):
    (tmp_path / "captions.txt").write_text("a cup on a desk\nthe old dog\n")
    more = ["--images_dir", tmp_path / "nowhere", "--blind", "--blind_captions", tmp_path / "captions.txt"]
    programs.run("probes", *flags(root, tmp_path / "blind", *more))
    result = json.loads((tmp_path / "blind/result.json").read_text())
    row = result["table"][0]
    assert (row["n"], row["missing"]) == (123, 0) and result["checkpoint"] == "texts alone"
    image = next(row for row in result["table"] if row["probe"] == "winoground" and row["metric"] == "image")
    assert image["score"] == 0 and image["ties"] == image["n"]  # nothing to tell pictures apart by
    assert "note" not in json.loads((tmp_path / "blind/gallery.json").read_text())
    assert all(row["blind"] is None for row in result["table"])


def test_crepe_says_the_ranks_of_every_file(programs, root, tmp_path):
    """By length alone: the true caption is the second shortest in one item and the shortest in the other."""
    rows = [
        ["dog on desk.", "['dog', 'dog on desk..', 'dog on desk...', 'dog on the desk', 'dog on a desk']"],
        ["dog on desk.", "['a dog on desk', 'dog on desks.', 'dogs on desk.', 'dog on the desk', 'dog on a desk']"],
    ]
    lines = [f'0,{caption},"{negatives}",1.0,1.0,20.0,20.0' for caption, negatives in rows]
    header = "image_id,caption,hard_negs,x,y,width,height"
    (tmp_path / "prod_vg_hard_negs_swap_complexity_4.csv").write_text("\n".join([header, *lines]) + "\n")
    given = flags(root, tmp_path / "out", "--annotations", tmp_path, "--blind")
    given[1:5] = ["crepe_productivity"]
    printed = programs.run("probes", *given).stdout
    facts = json.loads((tmp_path / "out/result.json").read_text())["facts"]["crepe_productivity"]["ranks"]["swap/4"]
    assert (facts["R@1"], facts["R@1 std"], facts["R@3"], facts["mean rank"], facts["median rank"]) == (
        50,
        50,
        100,
        1.5,
        1,
    )
    assert "crepe_productivity swap/4: R@1 50.00 (std 50.00)" in printed


def test_the_table_of_a_model_says_what_the_captions_alone_give_away(whole, root):
    """Of the pairs whose pictures are there, those whose true caption is shorter, and half of those of one length."""
    table = table_in(whole[0])
    entries = list(json.loads((root / "sugarcrepe/swap_att.json").read_text()).values())[:120]
    lengths = np.array([[len(entry["caption"]), len(entry["negative_caption"])] for entry in entries])
    shorter, equal = (lengths[:, 0] < lengths[:, 1]).sum(), (lengths[:, 0] == lengths[:, 1]).sum() + 1  # a cup, A cup
    row = table["sugarcrepe", "swap_att", "accuracy"]
    assert row["blind"] == pytest.approx(100 * (shorter + equal / 2) / 121, abs=1e-4) != row["score"]
    assert table["winoground", "all", "text"]["blind"] is None and table["nlvr", "dev", "accuracy"]["blind"] > 0
    line = next(line for line in whole[1].splitlines() if line.split()[:2] == ["sugarcrepe", "swap_att"])
    assert f"{row['blind']:.2f}" in line.split()


def test_a_trigram_model_beside_a_model(programs, root, whole, tmp_path):
    """The captions that it learnt are those that are true: it finds nearly all of them, and the model's score stays."""
    entries = json.loads((root / "sugarcrepe/swap_att.json").read_text()).values()
    (tmp_path / "captions.txt").write_text("\n".join(entry["caption"] for entry in entries) + "\n")
    given = flags(root, tmp_path / "out", "--blind_captions", tmp_path / "captions.txt")
    given[1:5] = ["sugarcrepe"]
    programs.run("probes", *given)
    with_trigrams, without = (table_in(f)["sugarcrepe", "swap_att", "accuracy"] for f in (tmp_path / "out", whole[0]))
    assert with_trigrams["blind"] > 90 > without["blind"] and with_trigrams["score"] == without["score"]


def test_images_in_the_rows_of_a_hub_data_set_are_read_where_they_lie(programs, root, whole, tmp_path):
    """Parquet with the pictures inside gives the scores of the folder with files; nothing else is written."""
    import pyarrow
    from pyarrow import parquet

    entries = [json.loads(line) for line in (root / "winoground/examples.jsonl").read_text().splitlines()]
    for entry in entries:
        entry |= {"tag": "Noun", "secondary_tag": "", "num_main_preds": 1}
        entry |= {f"image_{k}": {"bytes": (root / entry[f"image_{k}"]).read_bytes(), "path": None} for k in (0, 1)}
    hub = tmp_path / "hub/data"
    hub.mkdir(parents=True)
    parquet.write_table(pyarrow.Table.from_pylist(entries), hub / "test-00000-of-00001.parquet", row_group_size=5)
    given = flags(root, tmp_path / "out", "--annotations", tmp_path / "hub", "--datasets_dir", tmp_path / "data")
    given[1:5] = ["winoground"]
    programs.run("probes", *given)
    rows, files = ([json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
                   for folder in (tmp_path / "out", whole[0]))  # fmt: skip
    files = [row for row in files if row["probe"] == "winoground"]
    assert [row["scores"] for row in rows] == [row["scores"] for row in files] and len(rows) == PICTURES - 1
    assert [path.name for path in tmp_path.rglob("*.*g")] == [] and not (tmp_path / "data").exists()
    assert len(list((tmp_path / "hub").rglob("*"))) == 2
    cards = json.loads((tmp_path / "out/gallery.json").read_text())["cards"]
    assert cards and all(card["image"].startswith("data:image/jpeg") for card in cards)


def test_order_shufflings_are_frozen_once(programs, root, tmp_path):
    captions = [{"image": f"{n}.jpg", "caption": ["a red cup near the old book", "the dog"]} for n in range(4)]
    (tmp_path / "c.json").write_text(json.dumps(captions))
    given = flags(root, tmp_path / "order", "--datasets_dir", tmp_path, "--tagger", "bundled", "--order_seeds", "2")
    given[1:5], given[given.index("--annotations") + 1] = ["coco_order"], tmp_path / "c.json"
    programs.run("probes", *given)
    frozen = sorted((tmp_path / "probes/frozen").glob("coco_order_*_seed?.json"))
    before = [path.read_bytes() for path in frozen]
    result = json.loads((tmp_path / "order/result.json").read_text())
    assert [row["row"] for row in result["table"]] == ["seed 0", "seed 1", "mean over seeds"]
    assert set(result["digests"]["annotations"]["coco_order"]) == {path.name for path in frozen} and len(frozen) == 2
    (tmp_path / "c.json").unlink()  # the frozen files are enough
    programs.run("probes", *given, "--overwrite")
    assert [path.read_bytes() for path in frozen] == before


@pytest.mark.parametrize(
    "change, error, sentence",
    [
        (["--probes", "sugarcrep"], UserError, "--probes sugarcrep is not one of winoground, "),
        (["--probes"], UserError, "--probes names what to run: winoground"),
        (["--annotations", "nowhere"], UserError, "none of replace_obj"),
        (["--images_dir", "nowhere"], DataError, "sugarcrepe: none of the images of its 123 items is in nowhere"),
        (["--saliency", "-1"], UserError, "--saliency -1 must be at least 0"),
        (["--fused", "x/Epoch01", "--load", "y.pt"], UserError, "--fused and --load both name what is evaluated"),
        (["--fused", "x/Epoch01", "--blind"], UserError, "--fused and --blind both name what is evaluated"),
        (["--load", "y.pt", "--blind"], UserError, "--load and --blind both name what is evaluated"),
        (["--fused", "x/Epoch01"], UserError, "no checkpoint x/Epoch01_LXRT.pth"),
        (["--bert", "x"], UserError, "--bert x is the text model of a fused encoder: pass --fused as well"),
        (["--save_every", "0"], UserError, "--save_every and --batch_size must be at least 1"),
        (
            ["--blind", "--blind_captions", "nowhere"],
            UserError,
            "--blind_captions nowhere cannot be read: No such file",
        ),
    ],
)
def test_a_mistake_is_named(programs, root, tmp_path, change, error, sentence):
    with pytest.raises(error, match=sentence):
        programs.run("probes", *flags(root, tmp_path / "out"), *change)
    assert not (tmp_path / "out/result.json").exists()


def test_boxes_are_clamped_to_the_picture():
    import torch

    image = torch.arange(12).reshape(1, 3, 4)
    part, clamped = cut(image, (2, 1, 6, 3))
    assert part.tolist() == [[[6, 7], [10, 11]]] and clamped
    assert cut(image, (0, 0, 4, 3))[1] is False
    with pytest.raises(DataError, match="has 4 x 3 pixels and none in the box"):
        cut(image, (4, 0, 6, 3))


def test_texts_of_the_same_tokens_are_one():
    import torch

    def tokenizer(texts):
        width = max(len(text) for text in texts)
        return {"ids": torch.tensor([[*map(ord, t.lower()), *[0] * (width - len(t))] for t in texts])}

    kept, numbers = distinct_by_tokens(["a", "bcd", "A", "bc"], tokenizer, batch_size=2)
    assert kept == [0, 1, 3] and numbers == [0, 1, 0, 2]


def test_the_twins_of_scenes_are_a_winoground(programs, tmp_path, monkeypatch):
    from clip_vl.datasets.scenes import pair_sets

    monkeypatch.setattr(pair_sets, "TWINS", 3)
    programs.run("shapes", "--size", "twins", "--output", tmp_path / "twins", "--workers", "1")
    rows = [json.loads(line) for line in (tmp_path / "twins/examples.jsonl").read_text().splitlines()]
    for row in rows:
        one, two = row["caption_0"], row["caption_1"]
        assert one != two and sorted(one.replace(",", "").split()) == sorted(two.replace(",", "").split())
        pictures = [np.asarray(Image.open(tmp_path / f"twins/images/{row[f'image_{k}']}.png")) for k in (0, 1)]
        assert pictures[0].shape == pictures[1].shape and (pictures[0] != pictures[1]).any()
