"""Fine-tuning and testing as a user runs them."""

import json
import os
import shutil
import signal

import pytest
import torch

from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import Interrupted, UserError


def flags(programs, shapes_root, output, *more):
    return [*programs.ONE_STREAM, *programs.TINY, "--data_root", str(shapes_root), "--output", str(output), *more]


@pytest.fixture(scope="module")
def tuned(programs, shapes_root, tmp_path_factory):
    """A finished run of two epochs."""
    output = tmp_path_factory.mktemp("vqa") / "tuned"
    programs.run("vqa", *flags(programs, shapes_root, output, "--epochs", "2", "--checkpoint_steps", "3"))
    return output


def test_a_run_leaves_its_files(tuned):
    assert {"BEST.pth", "LAST.pth", "log.jsonl", "result.json", "gallery.json", "report.html"} <= {
        path.name for path in tuned.iterdir()
    }
    result = json.loads((tuned / "result.json").read_text())
    assert result["accuracy_low"] <= result["accuracy"] <= result["accuracy_high"] and result["accuracy_n"] == 24
    assert 0 <= result["majority_accuracy"] <= 100
    assert len(json.loads((tuned / "gallery.json").read_text())["cards"]) == 24


def test_minival_is_answered_once_each_and_scored_as_the_official_evaluator_does(programs, shapes_root, tuned):
    more = ["--load", str(tuned / "BEST"), "--test", "minival", "--max_eval_samples", "100000"]
    done = programs.run("vqa", *flags(programs, shapes_root, tuned, *more))
    answers = json.loads((tuned / "minival_predict.json").read_text())
    asked = json.loads((shapes_root / "vqa" / "minival.json").read_text())
    assert sorted(row["question_id"] for row in answers) == sorted(row["question_id"] for row in asked)
    result = json.loads((tuned / "result_minival.json").read_text())
    labels = {row["question_id"]: row["label"] for row in asked}
    by_hand = 100 * sum(labels[row["question_id"]].get(row["answer"], 0) for row in answers) / len(answers)
    assert result["accuracy"] == pytest.approx(by_hand, abs=1e-4)
    assert result["official_accuracy"] == pytest.approx(by_hand, abs=0.01)
    assert "minival: 0." in done.stdout
    with pytest.raises(UserError, match=f"for {len(answers)} samples, and these would be for 5 samples"):
        programs.run("vqa", *flags(programs, shapes_root, tuned, *more[:4], "--max_eval_samples", "5"))
    assert len(json.loads((tuned / "minival_predict.json").read_text())) == len(answers)


def test_the_test_split_has_no_labels_and_gets_its_submission_file(programs, shapes_root, tuned, tmp_path):
    more = ["--load", str(tuned / "BEST"), "--test", "test", "--max_eval_samples", "100000"]
    programs.run("vqa", *flags(programs, shapes_root, tmp_path / "out", *more))
    rows = json.loads((tmp_path / "out" / "test_predict.json").read_text())
    assert rows and all(set(row) == {"answer", "question_id"} and isinstance(row["answer"], str) for row in rows)
    assert not (tmp_path / "out" / "result_test.json").exists()


@pytest.mark.parametrize("moved", [False, True])
def test_the_sizes_of_training_need_no_flags(programs, shapes_root, tuned, tmp_path, moved):
    """The quickstart's model scored 55.43 in the place of 92.63 at the default sizes, which nothing said."""
    bare = ["--data_root", shapes_root, "--test", "minival", "--no-bf16", "--max_eval_samples", "24"]
    stem = tuned / "BEST"
    if moved:
        shutil.copy(tuned / "BEST.pth", tmp_path / "mine.pth")
        stem = tmp_path / "mine"
    done = programs.run("vqa", *bare, "--load", stem, "--output", tmp_path / "bare")
    given = ["--load", stem, "--test", "minival"]
    programs.run("vqa", *flags(programs, shapes_root, tmp_path / "given", *given))
    results = [json.loads((tmp_path / name / "result_minival.json").read_text()) for name in ("bare", "given")]
    assert results[0] == results[1] and "image_size_min 64" in done.stdout
    other = programs.run("vqa", *bare, "--load", stem, "--image_size_min", "32", "--output", tmp_path / "other")
    assert "--image_size_min 32 is given, but" in other.stdout and "trained with 64" in other.stdout


def test_two_processes_give_the_number_of_one(programs, shapes_root, tuned, tmp_path):
    numbers = []
    for nproc in (1, 2):
        more = ["--load", str(tuned / "BEST"), "--test", "minival", "--max_eval_samples", "50"]
        programs.run("vqa", *flags(programs, shapes_root, tmp_path / str(nproc), *more), nproc=nproc)
        numbers.append([(tmp_path / str(nproc) / f"{name}").read_text() for name in
                        ("minival_predict.json", "result_minival.json")])  # fmt: skip
    assert numbers[0] == numbers[1]


def test_two_interrupted_processes_resume_to_the_same_bits(programs, shapes_root, tmp_path):
    def run(name):
        return flags(programs, shapes_root, tmp_path / name, "--epochs", "2", "--checkpoint_steps", "2")

    programs.run("vqa", *run("whole"), nproc=2)
    launcher = programs.launch("vqa", *run("broken"))
    programs.wait_for_rows(tmp_path / "broken", 1, launcher)
    launcher.terminate()
    text = launcher.communicate(timeout=120)[0]
    assert launcher.returncode == 75, text
    launcher = programs.launch("vqa", *run("broken"), "--resume")
    text = launcher.communicate(timeout=240)[0]
    assert launcher.returncode == 0, text
    (_, whole, a), (_, broken, b) = (load_latest(tmp_path / n / "checkpoints") for n in ("whole", "broken"))
    assert all(torch.equal(flat[name], broken[stem][name]) for stem, flat in whole.items() for name in flat)
    assert a["updater"] == b["updater"]


def test_the_pretrained_answer_head_is_found_by_text(programs, shapes_root, pretrained, tmp_path):
    more = ["--loadLXMERTQA", str(pretrained), "--epochs", "1", "--lr", "0"]
    done = programs.run("vqa", *flags(programs, shapes_root, tmp_path / "vqa", *more))
    table = [row["ans"] for row in json.loads((shapes_root / "lxmert" / "all_ans.json").read_text())]
    answers = json.loads((shapes_root / "vqa" / "trainval_label2ans.json").read_text())
    assert f"{len(answers)} of {len(answers)} answers found" in done.stdout
    pre = torch.load(f"{pretrained}_LXRT.pth", weights_only=True)["module.answer_head.logit_fc.3.weight"]
    tuned = torch.load(tmp_path / "vqa" / "LAST.pth", weights_only=True)["logit_fc.3.weight"]
    assert torch.equal(tuned, pre[[table.index(answer) for answer in answers]])


def test_the_question_only_model_sees_no_image(programs, shapes_root, tmp_path):
    programs.run("vqa", *flags(programs, shapes_root, tmp_path / "q", "--question_only", "--epochs", "1"))
    names = torch.load(tmp_path / "q" / "LAST.pth", weights_only=True)
    assert not any("visual" in name or "visn" in name for name in names)


def test_a_signal_during_validation_ends_it_and_nothing_is_lost(programs, shapes_root, tuned, tmp_path, monkeypatch):
    from clip_vl import vqa

    def classify_and_signal(model, *args):
        if not model.training:
            os.kill(os.getpid(), signal.SIGTERM)
        return classify(model, *args)

    classify = vqa.classify
    monkeypatch.setattr(vqa, "classify", classify_and_signal)
    run = flags(programs, shapes_root, tmp_path / "run", "--epochs", "2", "--checkpoint_steps", "1000")
    with pytest.raises(Interrupted, match="and saved; add --resume"):
        programs.run_here("vqa", *run)
    monkeypatch.undo()
    programs.run("vqa", *run, "--resume", "--checkpoint_steps", "3")
    programs.same_run(tuned, tmp_path / "run")


def test_a_loss_falls_on_a_batch_it_can_memorise(programs, shapes_root, tmp_path):
    more = ["--max_train_samples", "8", "--epochs", "30", "--lr", "2e-3", "--valid", "", "--report_step", "1"]
    programs.run("vqa", *flags(programs, shapes_root, tmp_path / "m", *more))
    losses = [json.loads(line)["loss"] for line in programs.log_rows(tmp_path / "m")]
    assert losses[-1] < 0.3 * losses[0]
