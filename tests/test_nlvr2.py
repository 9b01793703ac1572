"""NLVR2, and NLVR's first version, as a user runs them: two images a statement, or one; accuracy and consistency."""

import io
import json
import signal
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.datasets.images.collections import NLVR
from clip_vl.datasets.images.inventory import list_collection, measure_images
from clip_vl.datasets.official.nlvr import convert_nlvr
from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.encoder import VLClassifier, VLEncoder
from clip_vl.nlvr2 import VERSIONS, score


def flags(programs, root, output, *more):
    return [*programs.ONE_STREAM, *programs.TINY, "--data_root", str(root), "--output", str(output), *more]


@pytest.fixture(scope="module")
def tuned(programs, shapes_root, pretrained, tmp_path_factory):
    """A finished run of one epoch on the pre-trained encoder."""
    output = tmp_path_factory.mktemp("nlvr2") / "tuned"
    programs.run("nlvr2", *flags(programs, shapes_root, output, "--epochs", "1", "--loadLXMERT", str(pretrained)))
    return output


def test_a_run_leaves_its_files(tuned):
    names = {path.name for path in tuned.iterdir()}
    assert {"BEST.pth", "LAST.pth", "log.jsonl", "result.json", "gallery.json", "report.html"} <= names
    result = json.loads((tuned / "result.json").read_text())
    assert result["task"] == "nlvr2" and result["split"] == "dev"
    assert result["accuracy_n"] == 20 and result["consistency_n"] == 5  # five statements about four pairs each
    assert result["majority_accuracy"] == 50  # each is true of two pairs
    assert "valid_consistency" in (tuned / "log.jsonl").read_text()
    assert "data:image/jpeg" in (tuned / "report.html").read_text()


def test_the_head_sees_the_statement_with_both_images(tuned):
    head = {name: value for name, value in torch.load(tuned / "LAST.pth", weights_only=True).items() if "fc.0" in name}
    width = head["logit_fc.0.bias"].numel() // 2
    assert head["logit_fc.0.weight"].shape == (2 * width, 2 * width)


def judged(tuned):
    """{identifier: said true} of dev_predict.csv, whose lines are the official form."""
    lines = [line.split(",") for line in (tuned / "dev_predict.csv").read_text().splitlines()]
    assert {said for _, said in lines} <= {"True", "False"} and all(len(line) == 2 for line in lines)
    return {identifier: said == "True" for identifier, said in lines}


def test_dev_gets_its_official_file_and_the_scores_of_it(programs, shapes_root, tuned, tmp_path):
    done = programs.run("nlvr2", *flags(programs, shapes_root, tuned, "--load", str(tuned / "BEST"), "--test", "dev"))
    said = judged(tuned)
    truth = {row["identifier"]: bool(row["label"]) for row in json.loads((shapes_root / "nlvr2/dev.json").read_text())}
    assert said.keys() == truth.keys()
    result = json.loads((tuned / "result_dev.json").read_text())
    right = {identifier: said[identifier] == truth[identifier] for identifier in said}
    assert result["accuracy"] == pytest.approx(100 * sum(right.values()) / len(right))
    assert "dev: 0." in done.stdout and "consistency 0." in done.stdout


def test_two_processes_judge_as_one(programs, shapes_root, tuned, tmp_path):
    more = ["--load", str(tuned / "BEST"), "--test", "dev"]
    for nproc in (1, 2):
        programs.run("nlvr2", *flags(programs, shapes_root, tmp_path / str(nproc), *more), nproc=nproc)
    for name in ("dev_predict.csv", "result_dev.json"):
        assert (tmp_path / "1" / name).read_text() == (tmp_path / "2" / name).read_text()


def test_a_killed_run_resumes_to_the_same_bits(programs, shapes_root, tmp_path):
    def run(name):
        more = ["--epochs", "3", "--checkpoint_steps", "2", "--report_step", "1"]
        return flags(programs, shapes_root, tmp_path / name, *more)

    programs.run("nlvr2", *run("whole"))
    code, _ = programs.interrupt("nlvr2", *run("broken"), number=signal.SIGKILL, after=3)
    assert code == -signal.SIGKILL
    programs.run("nlvr2", *run("broken"), "--resume")
    programs.same_run(tmp_path / "whole", tmp_path / "broken")


# ---- version 1


@pytest.fixture(scope="module")
def nlvr_root(shapes_root, tmp_path_factory):
    """A data root of version 1, converted from archives: statements about a picture's colour, in six orders."""
    root = tmp_path_factory.mktemp("nlvr")
    (root / "bert-base-uncased").symlink_to(shapes_root / "bert-base-uncased")
    for split, count in (("train", 4), ("dev", 2)):
        with zipfile.ZipFile(root / f"nlvr_{split}.zip", "w") as archive:
            examples = []
            for number in range(count):
                example = {"identifier": f"{number // 2}-{number % 2}", "directory": "1", "sentence": "it is red"}
                examples.append(json.dumps(example | {"label": ("true", "false")[number % 2]}))
                for order in range(6):
                    buffer = io.BytesIO()
                    Image.new("RGB", (80, 20), ((200, 0, 0), (0, 0, 200))[number % 2]).save(buffer, "PNG")
                    name = f"{split}-{number // 2}-{number % 2}-{order}.png"
                    archive.writestr(f"nlvr/{split}/images/1/{name}", buffer.getvalue())
            archive.writestr(f"nlvr/{split}/{split}.json", "\n".join(examples))
    convert_nlvr(root, [root / "nlvr_train.zip", root / "nlvr_dev.zip"])
    measure_images(root, list_collection(root, NLVR)[0], NLVR)
    return root


def test_version_1_is_learnt_from_its_archives_and_judged_for_every_order(programs, nlvr_root, tmp_path):
    more = ["--dataset", "nlvr", "--epochs", "10", "--lr", "2e-3"]
    programs.run("nlvr2", *flags(programs, nlvr_root, tmp_path / "o", *more))
    result = json.loads((tmp_path / "o" / "result.json").read_text())
    assert result["task"] == "nlvr" and result["accuracy_n"] == 12 and result["consistency_n"] == 1
    assert result["accuracy"] == 100  # red or blue
    more += ["--load", str(tmp_path / "o" / "BEST"), "--test", "dev"]
    programs.run("nlvr2", *flags(programs, nlvr_root, tmp_path / "o", *more))
    assert judged(tmp_path / "o") == {f"dev-0-{n}-{order}": n == 0 for n in (0, 1) for order in range(6)}


# ---- values


class Stated:
    """Statements by identifier, all true."""

    def __init__(self, identifiers):
        self.identifiers = identifiers

    def question_id(self, row):
        return self.identifiers[row]

    def answers(self, row):
        return np.array([1]), np.array([1.0])


@pytest.mark.parametrize(
    "version, wrong_and_right, consistent",
    [
        # sentence 0 of set 850 is judged wrongly with pair 1; sentence 1, and sentence 0 of set 851, with none
        (
            "nlvr2",
            (["dev-850-1-0"], ["dev-850-0-0", "dev-850-0-1", "dev-850-1-1", "dev-851-1-0"]),
            {"consistency": 200 / 3},
        ),
        # sentence 7 is judged wrongly for one order of its image 1, and rightly of its image 0; sentence 8 rightly.
        # NLVR's metrics_images.py counts sentences: one of two
        (
            "nlvr",
            (["dev-7-1-5"], ["dev-7-0-0", "dev-7-0-1", "dev-7-1-4", "dev-8-0-5"]),
            {"consistency": 50, "consistency_of_images": 200 / 3},
        ),
    ],
)
def test_consistency_is_over_pairs_and_over_images_and_orders(version, wrong_and_right, consistent):
    wrong, right = wrong_and_right
    predictions = [(row, [row >= len(wrong), 0], [0.9, 0.1]) for row in range(len(wrong) + len(right))]
    scores, report = score(Stated(wrong + right), predictions, VERSIONS[version])
    assert scores == [0, 1, 1, 1, 1] and report["accuracy"] == 80
    assert {name: report[name] for name in consistent} == pytest.approx(consistent)
    assert report["accuracy/answer_type/True_n"] == 5


def test_two_images_are_two_pooled_vectors_side_by_side():
    """Texts stand in for images: an encoder without visual part."""
    torch.manual_seed(0)
    config = BertConfig(vocab_size=30, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32)
    model = VLClassifier(VLEncoder(config, None), 2, images_each=2).eval()
    ids, mask = torch.randint(1, 30, (6, 5)), torch.ones(6, 5, dtype=torch.int64)
    pooled = model.bert(None, ids, mask)[2]
    together = torch.stack([torch.cat([pooled[2 * i], pooled[2 * i + 1]]) for i in range(3)])
    assert torch.allclose(model(None, ids, mask), model.logit_fc(together), atol=1e-6)


# ---- bad input


@pytest.mark.parametrize(
    "change, words",
    [
        ({"img1": None}, "the key 'img1' must hold a string"),
        ({"label": 2}, "the key 'label' must hold 0 (false) or 1 (true), not 2"),
        ({"identifier": "dev-1"}, "the key 'identifier' must hold four parts, such as 'dev-850-2-1', not 'dev-1'"),
        ({"img0": "../x"}, "is not a plain file name"),
        ({"img0": "elsewhere"}, "is in no folder of nlvr2"),
    ],
)
def test_a_wrong_statement_is_named_by_file_and_line(programs, shapes_root, tmp_path, change, words):
    (tmp_path / "nlvr2").mkdir()
    for name in ("bert-base-uncased", "nlvr2_raw_images"):
        (tmp_path / name).symlink_to(shapes_root / name)
    rows = json.loads((shapes_root / "nlvr2" / "dev.json").read_text())
    (tmp_path / "nlvr2" / "dev.json").write_text(f"[\n{json.dumps(rows[0])},\n{json.dumps(rows[1] | change)}\n]")
    with pytest.raises(DataError) as caught:
        programs.run_here("nlvr2", *flags(programs, tmp_path, tmp_path / "o", "--train", "dev"))
    assert "dev.json:3: entry 2" in str(caught.value) and words in str(caught.value)


def test_wrong_flags_are_one_sentence(programs, shapes_root, pretrained, tuned, nlvr_root, tmp_path):
    def refused(error, root, *more):
        with pytest.raises(error) as caught:
            programs.run_here("nlvr2", *flags(programs, root, tmp_path / "o", "--overwrite", *more))
        return str(caught.value)

    assert "--load snap/nlvr2/NAME/BEST" in refused(UserError, shapes_root, "--test", "dev")
    assert "use --loadLXMERT" in refused(UserError, shapes_root, "--loadLXMERTQA", str(pretrained))
    assert "no split 'test3'" in refused(DataError, shapes_root, "--test", "test3", "--load", str(tuned / "BEST"))
    more = ["--dataset", "nlvr", "--test", "dev", "--load", str(tuned / "BEST")]  # a head for two images
    assert "logit_fc.0.weight" in refused(UserError, nlvr_root, *more)
