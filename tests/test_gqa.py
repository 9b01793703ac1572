"""GQA as a user runs it: from a pre-trained answer head to the file for the server."""

import json
import math
import os
import shutil
import signal
from types import SimpleNamespace

import pytest
import torch

from clip_vl.engine.errors import DataError, UserError
from clip_vl.gqa import answering_loss, score


def flags(programs, root, output, *more):
    return [*programs.ONE_STREAM, *programs.TINY, "--data_root", str(root), "--output", str(output), *more]


@pytest.fixture(scope="module")
def tuned(programs, shapes_root, pretrained, tmp_path_factory):
    """A finished run of one epoch on the pre-trained head, its answers and what it printed."""
    output = tmp_path_factory.mktemp("gqa") / "tuned"
    more = ["--epochs", "1", "--loadLXMERTQA", str(pretrained)]
    done = programs.run("gqa", *flags(programs, shapes_root, output, *more))
    answers = json.loads((shapes_root / "gqa" / "trainval_label2ans.json").read_text())
    return SimpleNamespace(output=output, stdout=done.stdout, answers=answers)


def test_a_run_leaves_its_files_and_starts_from_the_answers_of_the_same_text(tuned):
    names = {path.name for path in tuned.output.iterdir()}
    assert {"BEST.pth", "LAST.pth", "log.jsonl", "result.json", "gallery.json", "report.html"} <= names
    result = json.loads((tuned.output / "result.json").read_text())
    assert result["task"] == "gqa" and result["split"] == "testdev" and result["accuracy_n"] == 24
    assert result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"]
    assert f"{len(tuned.answers)} of {len(tuned.answers)} answers found" in tuned.stdout
    assert "data:image/jpeg" in (tuned.output / "report.html").read_text()


def test_testdev_is_answered_once_each_in_the_server_s_form_and_scored_by_exact_match(programs, shapes_root, tuned):
    more = ["--load", str(tuned.output / "BEST"), "--test", "testdev", "--max_eval_samples", "100000"]
    done = programs.run("gqa", *flags(programs, shapes_root, tuned.output, *more))
    given = json.loads((tuned.output / "testdev_predict.json").read_text())
    asked = {row["question_id"]: row for row in json.loads((shapes_root / "gqa" / "testdev.json").read_text())}
    assert all(set(row) == {"questionId", "prediction"} and isinstance(row["questionId"], str) for row in given)
    assert sorted(row["questionId"] for row in given) == sorted(asked)
    right = {row["questionId"]: row["prediction"] in asked[row["questionId"]]["label"] for row in given}
    result = json.loads((tuned.output / "result_testdev.json").read_text())
    assert result["accuracy"] == pytest.approx(100 * sum(right.values()) / len(right))
    is_open = [right[number] for number, row in asked.items() if row["question_type"] == "query"]
    assert result["accuracy/kind/open"] == pytest.approx(100 * sum(is_open) / len(is_open))
    assert result["accuracy/kind/open_n"] + result["accuracy/kind/binary_n"] == len(right)
    assert "testdev: 0." in done.stdout


def test_submit_has_no_labels_and_gets_its_file(programs, shapes_root, tuned, tmp_path):
    more = ["--load", str(tuned.output / "BEST"), "--test", "submit", "--max_eval_samples", "30"]
    programs.run("gqa", *flags(programs, shapes_root, tmp_path / "out", *more))
    rows = json.loads((tmp_path / "out" / "submit_predict.json").read_text())
    assert len(rows) == 30 and all(row["prediction"] in tuned.answers for row in rows)
    assert not (tmp_path / "out" / "result_submit.json").exists()


def test_a_killed_run_resumes_to_the_same_bits_with_the_cross_entropy(programs, shapes_root, tmp_path):
    def run(name):
        more = ["--mceLoss", "--epochs", "2", "--checkpoint_steps", "2"]
        return flags(programs, shapes_root, tmp_path / name, *more)

    programs.run("gqa", *run("whole"))
    code, _ = programs.interrupt("gqa", *run("broken"), number=signal.SIGKILL, after=1)
    assert code == -signal.SIGKILL
    programs.run("gqa", *run("broken"), "--resume")
    programs.same_run(tmp_path / "whole", tmp_path / "broken")
    cards = json.loads((tmp_path / "broken" / "gallery.json").read_text())["cards"]
    assert all(sum(p for _, p in card["predictions"]) <= 1.001 for card in cards)  # a softmax, not sigmoids


# ---- values


def args(**change):
    return SimpleNamespace(**{"mce_loss": False, "loss_scale": 1} | change)


LOGITS = torch.tensor([[0.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
USABLE = torch.tensor([True, True])


def test_a_question_whose_answer_is_no_class_counts_for_nothing_in_either_loss():
    scores = torch.tensor([[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    assert answering_loss(LOGITS, scores, USABLE, args()).item() == pytest.approx(3 * math.log(2))  # mean * A
    # CLIP-ViL's code multiplies by the number of answers twice: 9 log 3
    assert answering_loss(LOGITS, scores, USABLE, args(mce_loss=True)).item() == pytest.approx(3 * math.log(3))
    none = torch.zeros(2, 3)
    assert (
        answering_loss(LOGITS, none, USABLE, args()) == answering_loss(LOGITS, none, USABLE, args(mce_loss=True)) == 0
    )


def test_the_cross_entropy_is_the_mean_over_questions_times_the_answers_or_the_scale():
    scores = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    mean = (math.log(3) + math.log(math.exp(2) + 2) - 2) / 2
    assert answering_loss(LOGITS, scores, USABLE, args(mce_loss=True)).item() == pytest.approx(3 * mean)
    scaled = answering_loss(LOGITS, scores, USABLE, args(mce_loss=True, loss_scale=500))
    assert scaled.item() == pytest.approx(500 * mean)


class Asked:
    """Five questions; the answer of the last is no class."""

    structures = ["query", "verify", "query", "choose", "query"]
    semantics = ["attr", "obj", "rel", "attr", "rel"]
    answers_of = [[0], [1], [2], [1], []]

    def question_type(self, row):
        return self.structures[row]

    def answer_type(self, row):
        return self.semantics[row]

    def answers(self, row):
        ids = torch.tensor(self.answers_of[row]).numpy()
        return ids, torch.ones(len(ids)).numpy()


def test_open_and_binary_are_scored_apart_and_an_unknown_answer_is_wrong():
    predictions = [(row, [best, 3], [0.9, 0.1]) for row, best in enumerate([0, 1, 1, 0, 2])]
    scores, report = score(Asked(), predictions)
    assert scores == [1, 1, 0, 0, 0]
    assert report["accuracy"] == 40 and report["accuracy_n"] == 5
    assert report["accuracy/kind/open"] == pytest.approx(100 / 3) and report["accuracy/kind/open_n"] == 3
    assert report["accuracy/kind/binary"] == 50 and report["accuracy/structure/choose"] == 0
    assert report["accuracy/answer_type/attr"] == 50 and report["accuracy/answer_type/rel"] == 0


# ---- bad input


@pytest.fixture
def root(shapes_root, tmp_path):
    """A copy of the data root to damage (images are linked, not copied)."""
    copy = tmp_path / "data"
    ignored = shutil.ignore_patterns("cache", "vg_raw_images", "flickr30k_images", "nlvr2_raw_images")
    shutil.copytree(shapes_root, copy, ignore=ignored, copy_function=os.link)
    return copy


def rewrite(path, value):
    path.unlink()  # a link into the shared set: never write through it
    path.write_text(json.dumps(value))


def test_mistakes_are_one_sentence(programs, root, tuned, tmp_path):
    def refused(error, *more):
        with pytest.raises(error) as caught:
            programs.run_here("gqa", *flags(programs, root, tmp_path / "o", "--overwrite", *more))
        return str(caught.value)

    assert "--load snap/gqa/NAME/BEST" in refused(UserError, "--test", "testdev")
    assert "testdev" in refused(DataError, "--test", "tesdev", "--load", str(tuned.output / "BEST"))
    assert "has no answer head" in refused(UserError, "--loadLXMERTQA", str(tuned.output / "BEST"))
    rows = json.loads((root / "gqa" / "testdev.json").read_text())
    rewrite(root / "gqa" / "testdev.json", [rows[0], rows[1] | {"label": "yes"}])
    assert "testdev.json:1: entry 2" in refused(DataError)
    rewrite(root / "gqa" / "trainval_ans2label.json", {"yes": 0})
    assert "trainval_ans2label.json" in refused(DataError)
    (root / "gqa_raw_images" / "width_heigths.json").unlink()
    rewrite(root / "gqa" / "trainval_ans2label.json", {answer: i for i, answer in enumerate(tuned.answers)})
    assert "gqa_raw_images/width_heigths.json is not there" in refused(DataError)


def test_unknown_answers_are_counted_in_the_score_and_told_of_in_training(programs, root, tmp_path):
    for split in ("train", "testdev"):
        rows = json.loads((root / "gqa" / f"{split}.json").read_text())
        rewrite(root / "gqa" / f"{split}.json", [rows[0] | {"label": {"unicorn": 1.0}}, *rows[1:9]])
    done = programs.run("gqa", *flags(programs, root, tmp_path / "o", "--train", "train", "--epochs", "1"))
    assert "1 training questions have an answer that is no class" in done.stdout
    assert json.loads((tmp_path / "o" / "result.json").read_text())["accuracy_n"] == 9
