"""An evaluation goes on from what is on disk, and refuses what was not written there by one."""

import shutil
import signal

import numpy as np
import pytest

from clip_vl.engine.errors import DataError
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.engine.run import RunSettings
from clip_vl.engine.signals import SIGNALS
from clip_vl.reports.page import write_report


@pytest.fixture
def run(tmp_path):
    run = EvaluationRun("retrieval", RunSettings(str(tmp_path / "e")), "cpu", write_report)
    run.begin({"weights": "a"})
    return run


def test_parts_on_disk_are_not_computed_again_and_a_compressed_one_is_refused(run):
    parts = run.in_parts("images", 2, lambda part: {"a": np.full(3, part)})
    assert [part["a"].tolist() for part in parts] == [[0, 0, 0], [1, 1, 1]]
    again = run.in_parts("images", 2, lambda part: pytest.fail("is computed again"))
    assert [part["a"].tolist() for part in again] == [[0, 0, 0], [1, 1, 1]]
    np.savez_compressed(run.work / "images_00001.npz", a=np.zeros(10**6))
    with pytest.raises(DataError, match=r"images_00001\.npz is damaged \(it unpacks to 8,000,\d+ bytes, more than"):
        run.in_parts("images", 2, lambda part: pytest.fail("is computed again"))


@pytest.mark.parametrize("text", ['{"inputs":' * 100_000, '{"inputs": 1e400}', "[]"])
def test_a_bomb_in_the_inputs_is_one_sentence(run, text):
    (run.work / "inputs.json").write_text(text)
    with pytest.raises(DataError, match=r"inputs\.json .*--overwrite"):
        run.begin({"weights": "a"})


@pytest.fixture(autouse=True)
def handlers():
    """A run takes signals over; give them back."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def open_run(folder, **flags):
    return EvaluationRun("probes", RunSettings(str(folder), **flags), "cpu", write_report)


def close(run):
    run.files._lock.close()


@pytest.fixture
def finished(tmp_path):
    run = open_run(tmp_path / "a")
    assert not run.begin({"weights": "1"})
    run.finish([{"id": 1}], {"task": "probes", "split": "x", "accuracy": 50.0})
    close(run)
    return tmp_path / "a"


def test_an_evaluation_killed_before_its_page_finishes_it_when_repeated(finished):
    (finished / "report.html").unlink()
    (finished / "work").mkdir()
    run = open_run(finished)
    assert run.begin({"weights": "1"})
    assert (finished / "report.html").is_file() and not (finished / "work").exists()
    close(run)


def test_overwrite_keeps_the_old_results_until_the_new_evaluation_begins(finished):
    run = open_run(finished, overwrite=True)
    assert (finished / "result.json").is_file() and (finished / "samples.jsonl").is_file()
    assert not run.begin({"weights": "2"})
    assert not (finished / "result.json").exists() and not (finished / "samples.jsonl").exists()
    close(run)
    shutil.rmtree(finished)
