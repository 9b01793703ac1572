"""The table of everything that was run."""

import csv
import json

import pytest

from clip_vl.engine.errors import DataError, UserError


def test_every_result_is_in_the_table_with_its_interval(programs, tmp_path):
    for name, result in {
        "retrieval/a": {"program": "retrieval", "split": "pairs|x", "recall@1": 40.0, "recall@1_low": 30.0,
                        "recall@1_high": 50.0, "recall@1_n": 1000, "mean_rank": 3.5},
        "vqa/b": {"program": "vqa", "split": "=minival", "accuracy": 71.25},
        "align/c": {"program": "align"},
    }.items():  # fmt: skip
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    (tmp_path / "vqa" / "b" / "result_test.json").write_text(json.dumps({"program": "vqa", "accuracy": 70.0}))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "result.json").write_text("{")
    done = programs.run("results", tmp_path)
    assert "retrieval/a retrieval pairs|x recall@1 40.00 30.00 to 50.00 1,000" in " ".join(done.stdout.split())
    assert "no score" in done.stdout and "vqa/b (test)" in done.stdout and "damaged" in done.stderr
    assert (
        "| retrieval/a | retrieval | pairs&#124;x | recall@1 | 40.00 | 30.00 to 50.00 | 1,000 |"
        in (tmp_path / "results.md").read_text()
    )
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["metric"] for row in rows if row["run"] == "retrieval/a"] == ["recall@1", "mean rank"]
    assert next(row for row in rows if row["run"] == "vqa/b")["split"] == "'=minival"
    assert json.loads((tmp_path / "results.json").read_text())["vqa/b"]["accuracy"] == 71.25


def test_nothing_to_show_gets_one_sentence(programs, tmp_path):
    with pytest.raises(UserError, match="no finished run is there"):
        programs.run_here("results", tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        programs.run_here("results", tmp_path / "no")


def test_bombs_are_left_out_and_foreign_names_are_printable(programs, tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "result.json").write_text('{"a":' * 200_000)
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "result.json").write_text('{"accuracy": 1' + "0" * 400 + "}")
    with pytest.raises(DataError, match=r"none of 2 results below .* can be read"):
        programs.run_here("results", tmp_path)
    (tmp_path / "odd\x1b[2J").mkdir()
    (tmp_path / "odd\x1b[2J" / "result.json").write_text(r'{"program": "\u001b]0;", "split": "\ud800", "accuracy": 50}')
    printed = programs.run("results", tmp_path)
    assert "\x1b" not in printed.stdout + printed.stderr and r"odd\x1b[2J" in printed.stdout
    assert json.loads((tmp_path / "results.json").read_text())["odd\x1b[2J"]["split"] == "\ud800"
