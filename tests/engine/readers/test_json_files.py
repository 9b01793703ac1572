"""JSON of others gives a value that can be written again, or one sentence."""

import json
import os

import pytest

from clip_vl.engine.errors import DataError
from clip_vl.engine.files import atomic_json
from clip_vl.engine.readers.json_files import MAX_BYTES, MAX_DEPTH, parse_json, read_object


def test_plain_json_is_what_the_library_gives(tmp_path):
    value = {"a": [1, -2.5, None, True, "\u00e9", {}], "b": 2**64, "c": {"d": [[]]}, "e": 1e300}
    assert parse_json(json.dumps(value)) == value
    (tmp_path / "a.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert read_object(tmp_path / "a.json") == value
    assert read_object(tmp_path / "none.json") is None


@pytest.mark.parametrize(
    "text",
    [
        '{"a":' * 200_000,
        "[" * 200_000,
        "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1),
        '{"a": ' * 500 + "1" + "}" * 500,
        '{"a": 1' + "0" * 400 + "}",
        '{"a": -1' + "0" * 10_000 + "}",
        '{"a": 1e400}',
        '{"a": [-1e999]}',
        "",
        "{",
        "\ufffe",
    ],
)
def test_a_bomb_is_one_sentence(tmp_path, text):
    path = tmp_path / "bomb.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"bomb\.json is not JSON") as refusal:
        read_object(path)
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300 + len(str(path))


def test_what_is_no_regular_file_of_bounded_size_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "zero.json").symlink_to("/dev/zero")
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    for name in ("pipe", "folder", "zero", "large"):
        with pytest.raises(DataError, match=rf"{name}\.json"):
            read_object(tmp_path / f"{name}.json")


def test_half_a_surrogate_pair_is_written_as_the_escape_that_it_was(tmp_path):
    value = parse_json(r'{"a": "\ud800 \udcff"}')
    atomic_json(tmp_path / "a.json", value)
    assert read_object(tmp_path / "a.json") == value
