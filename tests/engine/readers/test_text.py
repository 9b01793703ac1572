"""Text files: where lines end, byte-order marks, bytes that are not UTF-8, half surrogates, ids."""

import json
import re
from pathlib import Path

import pytest

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_json
from clip_vl.engine.readers.text import id_of, open_text, read_lines, split_lines, whole_text

ROOT = Path(__file__).resolve().parents[3]
ODD = "a\u2028b\u0085c\vd\x1ce\ff"  # all of these end a line for str.splitlines


def test_lines_end_where_python_files_end_them(tmp_path):
    text = f"{ODD}\r\ntwo\rthree\n\nfive"
    (tmp_path / "x.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    with (tmp_path / "x.txt").open(encoding="utf-8-sig") as file:
        expected = [line.rstrip("\n") for line in file]
    assert read_lines(tmp_path / "x.txt") == split_lines(text) == expected == [ODD, "two", "three", "", "five"]
    assert split_lines("") == [] and split_lines("\n") == [""]


def test_bytes_that_are_not_utf8_are_named_with_their_line(tmp_path):
    (tmp_path / "x.txt").write_bytes("zwölf\r\nÄpfel\rund ".encode() + b"caf\xe9\n")
    for read in (read_lines, lambda path: list(_lines(path))):
        with pytest.raises(DataError, match=r"x\.txt:3: byte 0xe9 is not UTF-8; save the file as UTF-8"):
            read(tmp_path / "x.txt")
    with pytest.raises(UserError, match=r"none\.txt cannot be read: No such file or directory; write it$"):
        read_lines(tmp_path / "none.txt", "write it")


def _lines(path):
    with open_text(path) as file:
        yield from file


def test_half_a_surrogate_pair_is_told_and_whole_ones_are_text():
    assert whole_text("zwölf \U0001f408") == "zwölf \U0001f408"
    with pytest.raises(ValueError, match="half of a surrogate pair"):
        whole_text(json.loads('"party \\ud83c"'))


def test_numbers_and_texts_are_the_same_id():
    assert {id_of(value) for value in (1, 1.0, "1", "1.0", " 1 ")} == {"1"}
    assert id_of("01") == "01" and id_of(1.5) == "1.5" and id_of(-3.0) == "-3" and id_of("a.0") == "a.0"
    assert id_of(1e16) == id_of(10**16) == "1" + "0" * 16
    assert id_of("caf\udce9.png", whole=False) == "caf\udce9.png"
    for value in (True, None, [1], "", " ", "\ud83c"):
        with pytest.raises(ValueError, match=r"an id must be|surrogate"):
            id_of(value)


def test_a_name_that_is_not_utf8_comes_back_from_a_file_as_it_was(tmp_path):
    value = {"name": b"caf\xe9.png".decode("utf-8", "surrogateescape"), "backslash": "\\udce9 zwölf"}
    atomic_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("folder", ["clip_vl", "benchmarks", "scripts"])
def test_no_file_is_split_by_splitlines(folder):
    assert (ROOT / folder).is_dir()
    found = [path for path in (ROOT / folder).rglob("*.py") if re.search(r"\.splitlines\(", path.read_text())]
    assert not found, "clip_vl.engine.readers.text.split_lines ends lines at \\n, \\r\\n and \\r alone"
