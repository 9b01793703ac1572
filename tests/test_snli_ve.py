"""SNLI-VE as a user runs it: from a pre-trained encoder to the predictions and their score."""

import json
import os
import shutil
import signal

import pytest
import torch

from clip_vl.engine.errors import DataError, UserError
from clip_vl.snli_ve import CLASSES


def flags(programs, root, output, *more):
    return [*programs.ONE_STREAM, *programs.TINY, "--data_root", str(root), "--output", str(output), *more]


@pytest.fixture(scope="module")
def tuned(programs, shapes_root, pretrained, tmp_path_factory):
    """A finished run that learns nothing: its encoder is the pre-trained one."""
    output = tmp_path_factory.mktemp("snli_ve") / "tuned"
    more = ["--epochs", "1", "--loadLXMERT", str(pretrained), "--lr", "0"]
    programs.run("snli_ve", *flags(programs, shapes_root, output, *more))
    return output


def test_a_run_leaves_its_files(tuned):
    names = {path.name for path in tuned.iterdir()}
    assert {"BEST.pth", "LAST.pth", "log.jsonl", "result.json", "gallery.json", "report.html"} <= names
    result = json.loads((tuned / "result.json").read_text())
    assert result["task"] == "snli_ve" and result["split"] == "dev" and result["accuracy_n"] == 24
    assert sum(result[f"accuracy/answer_type/{name}_n"] for name in CLASSES) == 24
    assert result["majority_accuracy"] == pytest.approx(100 / 3, abs=10)  # each class is as often


def test_the_encoder_is_the_pretrained_one_under_a_head_of_three_classes(tuned, pretrained):
    before = torch.load(f"{pretrained}_LXRT.pth", weights_only=True)
    after = torch.load(tuned / "LAST.pth", weights_only=True)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    assert torch.equal(after[f"lxrt_encoder.model.{name}"], before[f"module.{name}"])
    assert CLASSES == ("contradiction", "entailment", "neutral") and after["logit_fc.3.weight"].shape[0] == 3


def test_every_hypothesis_of_test_is_judged_once_and_scored(programs, shapes_root, tuned):
    more = ["--load", str(tuned / "BEST"), "--test", "test", "--max_eval_samples", "100000"]
    done = programs.run("snli_ve", *flags(programs, shapes_root, tuned, *more))
    given = json.loads((tuned / "test_predict.json").read_text())
    truth = {row["question_id"]: row["label"] for row in json.loads((shapes_root / "snli_ve/test.json").read_text())}
    assert all(set(row) == {"pairID", "prediction"} and row["prediction"] in CLASSES for row in given)
    assert sorted(row["pairID"] for row in given) == sorted(truth)
    right = sum(row["prediction"] in truth[row["pairID"]] for row in given)
    result = json.loads((tuned / "result_test.json").read_text())
    assert result["accuracy"] == pytest.approx(100 * right / len(given))
    assert f"over {len(given)} hypotheses" in done.stdout
    cards = json.loads((tuned / "gallery.json").read_text())["cards"]
    assert all(sum(p for _, p in card["predictions"]) == pytest.approx(1, abs=1e-3) for card in cards)


def test_a_killed_run_resumes_to_the_same_bits(programs, shapes_root, tmp_path):
    def run(name):
        return flags(programs, shapes_root, tmp_path / name, "--epochs", "2", "--checkpoint_steps", "2")

    programs.run("snli_ve", *run("whole"))
    code, _ = programs.interrupt("snli_ve", *run("broken"), number=signal.SIGKILL, after=1)
    assert code == -signal.SIGKILL
    programs.run("snli_ve", *run("broken"), "--resume")
    programs.same_run(tmp_path / "whole", tmp_path / "broken")


def test_mistakes_are_one_sentence(programs, shapes_root, pretrained, tmp_path):
    root = tmp_path / "data"
    ignored = shutil.ignore_patterns("cache", "mscoco", "vg_raw_images", "gqa_raw_images", "nlvr2_raw_images")
    shutil.copytree(shapes_root, root, ignore=ignored, copy_function=os.link)

    def refused(error, *more):
        with pytest.raises(error) as caught:
            programs.run_here("snli_ve", *flags(programs, root, tmp_path / "o", "--overwrite", *more))
        return str(caught.value)

    assert "--load snap/snli_ve/NAME/BEST" in refused(UserError, "--test", "test")
    assert "use --loadLXMERT" in refused(UserError, "--loadLXMERTQA", str(pretrained))
    path = root / "snli_ve" / "dev.json"
    rows = json.loads(path.read_text())
    path.unlink()
    path.write_text(json.dumps([rows[0] | {"label": {"maybe": 1.0}}, *rows[1:]]))
    assert "1 labels" in refused(DataError) and "are none of contradiction, entailment, neutral" in refused(DataError)
    path.write_text(json.dumps([{"question_id": "1", "sent": "a"}]))
    assert "dev.json:1: entry 1: the key 'img_id' is missing" in refused(DataError)
