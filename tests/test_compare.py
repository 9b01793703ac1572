"""Comparisons of two results folders as a user makes them."""

import json

import pytest

from clip_vl.engine.errors import DataError, UserError


def write(folder, rows, **result):
    folder.mkdir()
    (folder / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text(json.dumps({"program": "retrieval", "split": "x"} | result))
    (folder / "args.json").write_text(json.dumps({"args": {"load": folder.name, "seed": 1}, "commit": "c"}))
    return folder


@pytest.fixture
def runs(tmp_path):
    """Two runs over texts and images: the second gains t1 and t2, loses i0, and misses t9."""
    ranks = {"a": {"t0": 1, "t1": 7, "t2": 3, "i0": 1, "t9": 1}, "b": {"t0": 1, "t1": 1, "t2": 1, "i0": 2}}
    return [
        write(tmp_path / run, [{"id": n, "group": n[0], "correct": int(r == 1), "rank": r, "query": f"what {n}"}
                               for n, r in found.items()])
        for run, found in ranks.items()
    ]  # fmt: skip


def test_what_changed_and_what_flipped(programs, runs, tmp_path):
    printed = programs.run("compare", *runs, "--output", tmp_path / "c.json").stdout
    assert "load: a -> b" in printed and "seed" not in printed
    assert "only in A, and left out: 1 of 5 rows" in printed
    found = json.loads((tmp_path / "c.json").read_text())["groups"]
    assert found["t"]["n"] == 3 and (found["t"]["lost"], found["t"]["won"]) == (0, 2)
    assert found["t"]["difference"] == pytest.approx(200 / 3) and found["t"]["mcnemar_p"] == 0.5
    assert [flip["id"] for flip in found["t"]["better"]] == ["t1", "t2"] and found["t"]["worse"] == []
    assert found["i"]["worse"] == [{"id": "i0", "query": "what i0", "rank": [1, 2]}]


def test_recall_at_another_rank(programs, runs, tmp_path):
    programs.run(
        "compare", runs[0] / "result.json", runs[1] / "samples.jsonl", "--at", "5", "--output", tmp_path / "c.json"
    )
    found = json.loads((tmp_path / "c.json").read_text())["groups"]
    assert (found["t"]["lost"], found["t"]["won"]) == (0, 1) and found["i"]["difference"] == 0


def test_rows_of_probes_are_compared_by_subset_and_unscored_ones_left_out(programs, tmp_path):
    rows = [{"id": i, "probe": "p", "subset": "s", "correct": 1, "scores": [1]} for i in range(3)]
    one = write(tmp_path / "a", [*rows, {"id": 3, "probe": "p", "subset": "s", "missing_image": 1}])
    two = write(tmp_path / "b", [*[row | {"correct": 0} for row in rows], {"id": 3, "probe": "p", "subset": "s"}])
    assert "p/s  3  100.00  0.00" in programs.run("compare", one, two).stdout


def test_answers_without_scores_are_counted_and_shown(programs, tmp_path):
    for name, answers in (("a", ["yes", "red"]), ("b", ["yes", "blue"])):
        (tmp_path / name).mkdir()
        rows = [{"question_id": number, "answer": answer} for number, answer in enumerate(answers)]
        (tmp_path / name / "minival_predict.json").write_text(json.dumps(rows))
    printed = programs.run("compare", tmp_path / "a", tmp_path / "b").stdout
    assert "1 of 2 differ" in printed and '{"id": "1", "answer": ["red", "blue"]}' in printed


def test_rows_are_read_as_evaluations_write_them(programs, runs, tmp_path):
    """A caption may hold what str.splitlines takes for a line's end, and a file that was edited a byte-order mark."""
    rows = [{"id": 1, "correct": 1, "query": "in\u2028the \x85 park \x1c"}, {"id": "2", "correct": 0}]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    for name, data in (("a", b"\xef\xbb\xbf" + text.encode()), ("b", text.replace('"2"', "2.0").encode())):
        (tmp_path / f"{name}.jsonl").write_bytes(data)
    programs.run_here("compare", tmp_path / "a.jsonl", tmp_path / "b.jsonl", "--output", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["groups"]["all"]["n"] == 2


def test_rows_of_files_whose_names_are_not_utf8_are_compared(programs, tmp_path):
    row = {"id": "caf\udce9.png", "image": "caf\udce9.png"}
    one, two = (write(tmp_path / name, [row | {"correct": right}]) for name, right in (("a", 1), ("b", 0)))
    programs.run_here("compare", one, two, "--output", tmp_path / "c.json")
    assert json.loads((tmp_path / "c.json").read_text())["groups"]["all"]["worse"][0]["id"] == row["id"]


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("{", "not a file of rows"),
        ('{"correct": 1}', "row 1 has no id"),
        ('{"id": 1}\n{"id": 1}', "id 1 of an earlier"),
    ],
)
def test_damaged_rows_are_named(programs, runs, tmp_path, content, sentence):
    (tmp_path / "bad.jsonl").write_text(content)
    with pytest.raises(DataError, match=rf"bad\.jsonl.*{sentence}"):
        programs.run_here("compare", runs[0], tmp_path / "bad.jsonl")


def test_bad_arguments_get_one_sentence(programs, runs, tmp_path):
    other = write(tmp_path / "other", [{"id": "z", "correct": 1}])
    for given, sentence in (((runs[0],), "two evaluations"), ((runs[0], tmp_path / "no"), "is not there"),
                            ((runs[0], other), "no id in common"), ((*runs, "--at", "0"), "at least 1")):  # fmt: skip
        with pytest.raises(UserError, match=sentence):
            programs.run_here("compare", *given)


@pytest.mark.parametrize(
    "line",
    [
        '{"id": 1, "correct":' * 100_000,
        '{"id": 1, "correct": 1e400}',
        '{"id": 1, "correct": 1' + "0" * 400 + "}",
        '{"id": 1, "correct": [1]}',
        '{"id": 1, "correct": NaN}',
        '{"id": 1, "rank": {}}',
        "[]",
    ],
)
def test_a_bomb_among_the_rows_is_one_sentence(programs, runs, line):
    (runs[1] / "samples.jsonl").write_text(line + "\n")
    with pytest.raises(DataError, match=r"samples\.jsonl") as refusal:
        programs.run_here("compare", *runs)
    assert "\n" not in str(refusal.value)


def test_a_bomb_beside_the_rows_is_one_sentence(programs, runs):
    (runs[1] / "args.json").write_text('{"args":' * 100_000)
    with pytest.raises(DataError, match=r"args\.json is not JSON \(it is nested too deeply\)"):
        programs.run_here("compare", *runs)
