"""Report pages: everything is on them, nothing foreign runs, nothing is fetched."""

import json

import pytest

from clip_vl.engine.errors import DataError
from clip_vl.engine.run_folder import RunFolder
from clip_vl.report import comparison_table
from clip_vl.reports.page import read_run, write_report

HOSTILE = "<script>alert(1)</script>"
CARD = {
    "image": "",
    "title": HOSTILE,
    "truth": [[HOSTILE, 1.0]],
    "predictions": [["no", 0.5]],
    "correct": False,
    "note": "",
    "saliency": [[HOSTILE, "data:image/jpeg;base64,AAAA"], ["elsewhere", "http://elsewhere/picture.jpg"]],
}


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "first"
    RunFolder(folder, {"lr": 1e-4, "note": HOSTILE}, "vqa")
    rows = [
        {"step": i, "epoch": 1, "loss": 3.0 / (i + 1), "lr_adam": 1e-4, "seconds": 2.0, "samples": 64} for i in range(5)
    ]
    rows.append({"step": 5, "epoch": 1, "valid_accuracy": 61.5, "loss": None})
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = {"task": "vqa", "split": "minival", "accuracy": 61.5, "accuracy_n": 900, "accuracy_low": 58.0,
              "accuracy_high": 64.0, "accuracy/answer_type/yes/no": 80.0, "majority_accuracy": 34.0}  # fmt: skip
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "gallery.json").write_text(json.dumps({"cards": [CARD] * 24, "note": HOSTILE}))
    return folder


def test_foreign_text_is_escaped_and_nothing_is_fetched(run_folder):
    page = write_report(run_folder).read_text()
    assert HOSTILE not in page and "&lt;script&gt;alert(1)" in page
    assert 'src="http' not in page and 'href="http' not in page and "61.5" in page and "yes/no" in page
    assert page.count('src="data:image/jpeg;base64,AAAA"') == 24 and "elsewhere" not in page


@pytest.mark.parametrize("log", ["", '{"step": 1, "loss": 2.0}\n', '{"step": 1, "loss": null}\n{"step'])
def test_a_short_or_torn_log_makes_a_page_too(run_folder, log):
    (run_folder / "log.jsonl").write_text(log)
    (run_folder / "result.json").unlink()
    assert "<html" in write_report(run_folder).read_text()


def test_counts_are_whole_and_a_truth_without_a_score_stands_alone(run_folder):
    result = json.loads((run_folder / "result.json").read_text()) | {"images": 5000}
    (run_folder / "result.json").write_text(json.dumps(result))
    (run_folder / "gallery.json").write_text(json.dumps({"cards": [CARD | {"truth": [["its image", None]]}]}))
    page = write_report(run_folder).read_text()
    assert "<strong>5,000</strong>" in page and "<strong>61.50</strong>" in page and "<b>its image</b></div>" in page


def test_an_evaluation_has_no_curves(run_folder):
    assert "<h2>Curves</h2>" in write_report(run_folder).read_text()
    (run_folder / "log.jsonl").unlink()
    assert "<h2>Curves</h2>" not in write_report(run_folder).read_text()


def test_several_runs_make_a_table_with_the_majority_answer(programs, run_folder, tmp_path):
    done = programs.run("report", run_folder, run_folder)
    lines = done.stdout.splitlines()
    assert lines[1].split()[:2] == ["majority", "answer"] and "34.00" in lines[1]
    assert lines[2].split() == ["first", "minival", "61.50", "58.00", "to", "64.00", "900"]


def test_a_folder_without_a_run_is_an_error(programs, tmp_path):
    done = programs.run("report", tmp_path, check=False)
    assert done.returncode == 2 and "args.json" in done.stderr


def test_a_single_point_and_a_count_that_stays_zero_are_no_panels():
    from clip_vl.reports.curves import panels_of, series_of

    rows = [{"step": s, "loss": 1.0, "skipped": 0, "late": s - 1} for s in (1, 2)] + [
        {"step": 2, "valid_accuracy": 9.0}
    ]
    assert [panel["title"] for panel in panels_of(series_of(rows))] == ["Training loss", "Late"]


DEEP = '{"a":' * 200_000
ODD = ['"text"', "null", "true", "[]", "{}", "[1, {}]", "-5", "0", "5e-324", "1e308", "-1e308", "NaN", "Infinity",
       r'"\ud800"']  # fmt: skip
KEYS = {
    "args.json": ["program", "name", "started", "resumed", "commit", "machine", "versions", "args"],
    "log.jsonl": ["step", "epoch", "seconds", "samples", "loss", "lr"],
    "result.json": ["accuracy", "accuracy_low", "accuracy_n", "split", "majority_accuracy", "a/b/c"],
    "gallery.json": ["cards", "note", "confusion"],
}


@pytest.mark.parametrize("name", KEYS)
def test_a_bomb_in_a_run_folder_is_one_sentence(run_folder, name):
    for text in (DEEP, '{"a": 1' + "0" * 400 + "}", '{"a": 1' + "0" * 9999 + "}", '{"a": 1e400}', "[]", "\xff"):
        (run_folder / name).write_text(text, encoding="latin-1")
        if name == "log.jsonl":  # lines that are no rows are passed over
            assert "<html" in write_report(run_folder).read_text()
            continue
        with pytest.raises(DataError, match=name.replace(".", r"\.")) as refusal:
            write_report(run_folder)
        assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 400


@pytest.mark.parametrize("name", KEYS)
def test_entries_of_any_type_make_a_page_or_one_sentence(run_folder, name):
    """No value of an entry that the page shows leads to a traceback, there or in the table of several runs."""
    whole = (run_folder / name).read_text()
    for value in ODD:
        entries = ", ".join(f'"{key}": {value}' for key in KEYS[name])
        text = f"{whole.strip()[:-1]}, {entries}}}" if name != "log.jsonl" else whole + f"{{{entries}}}\n" * 2
        (run_folder / name).write_text(text)
        try:
            write_report(run_folder)
            comparison_table([read_run(run_folder)] * 2)
        except DataError as error:
            assert name == "gallery.json" and name in str(error)
