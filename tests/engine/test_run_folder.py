"""The run folder: whole rows, an honest record, and nothing of anybody else's lost."""

import errno
import json
import math
import subprocess
import sys

import pytest
import torch

from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import ProgramError, UserError
from clip_vl.engine.run_folder import RunFolder

ARGS = {"lr": 1e-3, "output": "x"}


def rows(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def close(run):
    """What the end of the process would do: let go of the folder."""
    run._lock.close()
    run._file.close()


def test_a_row_is_json_whatever_the_numbers(tmp_path, capsys):
    run = RunFolder(tmp_path / "a", ARGS, "vqa")
    run.log(step=1, loss=torch.tensor(2.5), bad=math.nan, worse=float("inf"), note="late")
    assert rows(tmp_path / "a") == [{"step": 1, "loss": 2.5, "bad": None, "worse": None, "note": "late"}]
    assert "bad not finite" in capsys.readouterr().out


def test_ranks_but_the_first_touch_nothing(tmp_path, capsys):
    run = RunFolder(tmp_path / "a", ARGS, "vqa", rank=1)
    run.log(step=1, loss=1.0)
    run.write_result(task="vqa")
    run.write_predictions("minival_predict.json", [])
    assert run.position() == 0 and list(tmp_path.iterdir()) == [] and capsys.readouterr().out == ""


def test_truncate_forgets_later_rows_and_half_of_one(tmp_path):
    run = RunFolder(tmp_path / "a", ARGS, "vqa")
    run.log(step=1)
    position = run.position()
    run.log(step=2)
    with (tmp_path / "a" / "log.jsonl").open("ab") as file:
        file.write(b'{"step": 3, "lo')  # a writer was killed here
    run.truncate(position)
    run.log(step=4)
    assert rows(tmp_path / "a") == [{"step": 1}, {"step": 4}]


def test_a_log_shorter_than_the_checkpoint_says_is_told_and_kept(tmp_path, capsys):
    run = RunFolder(tmp_path / "a", ARGS, "vqa")
    run.log(step=1)
    run.truncate(10_000)
    assert rows(tmp_path / "a") == [{"step": 1}] and "lost rows" in capsys.readouterr().out


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = RunFolder(tmp_path / "a", ARGS, "vqa")
    run.log(step=1, loss=3.0)
    position = run.position()
    run.log(step=2, loss=9.0)
    run.truncate(position)
    run.log(step=2, loss=2.0)
    events = EventAccumulator(str(tmp_path / "a" / "tensorboard")).Reload().Scalars("loss")
    assert [(e.step, e.value) for e in events] == [(1, 3.0), (2, 2.0)]


def test_a_name_in_use_is_refused_and_a_resumed_run_notes_what_changed(tmp_path):
    close(RunFolder(tmp_path / "a", ARGS, "vqa"))
    with pytest.raises(UserError, match="already holds a run"):
        RunFolder(tmp_path / "a", ARGS, "vqa")
    with pytest.raises(UserError, match="holds a run of vqa, not of pretrain"):
        RunFolder(tmp_path / "a", ARGS, "pretrain", resume=True)
    started = json.loads((tmp_path / "a" / "args.json").read_text())["started"]
    close(RunFolder(tmp_path / "a", ARGS | {"lr": 2e-3}, "vqa", resume=True))
    record = json.loads((tmp_path / "a" / "args.json").read_text())
    assert record["started"] == started and record["resumed"][0]["changed"] == ["lr: 0.001 -> 0.002"]


def test_overwrite_deletes_what_a_run_wrote_and_nothing_else(tmp_path):
    run = RunFolder(tmp_path / "a", ARGS, "vqa")
    run.log(step=1)
    run.write_result(task="vqa")
    (tmp_path / "a" / "checkpoints").mkdir()
    (tmp_path / "a" / "notes.txt").write_text("mine")
    close(run)
    RunFolder(tmp_path / "a", ARGS, "vqa", overwrite=True)
    left = {path.name for path in (tmp_path / "a").iterdir()}
    assert left == {".lock", "args.json", "log.jsonl", "notes.txt"} and rows(tmp_path / "a") == []


def test_overwrite_leaves_what_no_run_wrote(tmp_path):
    close(RunFolder(tmp_path / "a", ARGS, "vqa"))
    theirs = [tmp_path / "a" / name for name in ("RN50.pth", "checkpoints/other", "tensorboard/notes")]
    for path in theirs:
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    run = RunFolder(tmp_path / "a", ARGS, "vqa", overwrite=True)
    run.truncate(0)
    assert all(path.is_file() for path in theirs)


def test_overwrite_refuses_runs_of_other_programs_and_folders_of_no_run(tmp_path):
    close(RunFolder(tmp_path / "a", ARGS, "vqa"))
    with pytest.raises(UserError, match="holds a run of vqa, not of align"):
        RunFolder(tmp_path / "a", ARGS, "align", overwrite=True)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "result.json").write_text("{}")
    for overwrite in (False, True):
        with pytest.raises(UserError, match=r"holds result\.json without the args\.json of a run of vqa"):
            RunFolder(tmp_path / "b", ARGS, "vqa", overwrite=overwrite)
    assert (tmp_path / "b" / "result.json").is_file()


def test_a_start_that_fails_before_its_run_is_ready_changes_nothing(tmp_path):
    run = RunFolder(tmp_path / "a", ARGS, "vqa")
    run.write_result(task="vqa")
    close(run)
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()}
    run = RunFolder(tmp_path / "a", ARGS | {"lr": 1}, "vqa", overwrite=True, wait=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir() if path.is_file()} == before
    run.start()
    assert not (tmp_path / "a" / "result.json").exists()
    RunFolder(tmp_path / "b", ARGS, "vqa", wait=True)._lock.close()
    RunFolder(tmp_path / "b", ARGS, "vqa")  # a start that failed is no run


def test_a_resumed_run_waits_for_the_end_of_the_process_before_it(tmp_path):
    code = f"""from clip_vl.engine.run_folder import RunFolder
import time
run = RunFolder({str(tmp_path / "a")!r}, {{}}, "vqa")
print("ready", flush=True)
time.sleep(1)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as other:
        other.stdout.readline()
        RunFolder(tmp_path / "a", ARGS, "vqa", resume=True)
        assert other.wait() == 0


def test_a_result_whose_weights_could_not_be_written_is_an_error(tmp_path, monkeypatch, capsys):
    run = RunFolder(tmp_path / "a", ARGS, "vqa")

    def full(value, file):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        save_plain(tmp_path / "a" / "LAST.pth", {})
    assert "LAST.pth could not be written: No space left" in capsys.readouterr().out
    with pytest.raises(ProgramError, match="No space left on device; free some room and start again with --resume"):
        run.write_result(task="vqa", checkpoint="LAST.pth")
    assert not (tmp_path / "a" / "result.json").exists()
    save_plain(tmp_path / "a" / "LAST.pth", {})
    run.write_result(task="vqa", checkpoint="LAST.pth")


def test_resume_and_overwrite_exclude_each_other(tmp_path):
    with pytest.raises(UserError, match="one of them"):
        RunFolder(tmp_path / "a", ARGS, "vqa", resume=True, overwrite=True)


def test_two_processes_do_not_write_one_folder(tmp_path):
    run = RunFolder(tmp_path / "a", ARGS, "vqa")
    code = "from clip_vl.engine import run_folder; run_folder.LOCK_SECONDS = 0; "
    code += f"run_folder.RunFolder({str(tmp_path / 'a')!r}, {{}}, 'vqa', resume=True)"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "Another process writes" in other.stderr
    close(run)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_a_full_disk_costs_whole_rows_and_one_warning(tmp_path, capsys):
    run = RunFolder(tmp_path / "a", ARGS, "vqa")
    run.log(step=1)
    whole = run._file

    class Full:
        """The file on a disk that takes five more bytes of each row."""

        name = whole.name

        def __getattr__(self, name):
            return getattr(whole, name)

        def write(self, line):
            return whole.write(line[:5])

    run._file = Full()
    run.log(step=2)
    run.log(step=3)
    run._file = whole
    run.log(step=4)
    assert rows(tmp_path / "a") == [{"step": 1}, {"step": 4}]
    assert capsys.readouterr().out.count("are lost") == 1


def test_a_result_names_its_program_and_run(tmp_path):
    run = RunFolder(tmp_path / "a", ARGS, "vqa")
    run.write_result(task="vqa", accuracy=torch.tensor(73.5), by_type={"number": math.nan})
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert {"program": "vqa", "name": "a", "accuracy": 73.5, "by_type": {"number": None}}.items() <= result.items()
