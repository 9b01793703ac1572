import io
import json
import random
import tracemalloc

import pytest

from clip_vl.datasets.storage import json_stream
from clip_vl.datasets.storage.json_stream import (
    iterate_json_lines,
    iterate_json_list,
    iterate_json_members,
    iterate_json_object,
    read_json,
)
from clip_vl.engine.errors import DataError, UserError

ITEMS = [
    {"img_id": "COCO_1", "sentf": {"vqa": ['How many, [or] {so} "dogs"? \\', "¿Qué? 🐕"]}, "x": None},
    -12.5e-3,
    "a string, with ] and \\u0041 and \n in it",
    [],
    [[{}], True, False, None],
    1234567,
    {"": ""},
]


def write(tmp_path, content, name="items.json"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 64, 1 << 20])
@pytest.mark.parametrize("style", [{}, {"indent": 2}, {"ensure_ascii": False}, {"separators": (",", ":")}])
def test_items_are_those_of_the_json_module_wherever_the_buffer_ends(tmp_path, monkeypatch, read_bytes, style):
    monkeypatch.setattr(json_stream, "READ_BYTES", read_bytes)
    path = write(tmp_path, json.dumps(ITEMS, **style))
    assert [item for _, item in iterate_json_list(path)] == ITEMS == read_json(path)


@pytest.mark.parametrize("read_bytes", [1, 50, 1 << 20])
def test_every_item_comes_with_the_line_it_starts_on(tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(json_stream, "READ_BYTES", read_bytes)
    path = write(tmp_path, '\ufeff\n[\n {"a":\n 1},\n\n {"b": 2}, {"c": 3}\n,\n4 ]\n\n')
    assert list(iterate_json_list(path)) == [(3, {"a": 1}), (6, {"b": 2}), (6, {"c": 3}), (8, 4)]


@pytest.mark.parametrize("content", ["[]", " [ \n ] "])
def test_an_empty_list_has_no_items(tmp_path, content):
    assert list(iterate_json_list(write(tmp_path, content))) == []


@pytest.mark.parametrize(
    "content, line, words",
    [
        (b"", 1, "the file ends"),
        (b"\n\n", 3, "the file ends"),
        (b'\n{"a": 1}', 2, "a JSON list, '[...]', was expected, not '{\"a\": 1}'"),
        (b'[1,\n2,\n{"a" 1}]', 3, "Expecting ':' delimiter (column 6)"),
        (b'[1,\n {"a": 1 "b": 2}]', 2, "Expecting ',' delimiter (column 10)"),
        (b"[1,\n]", 2, "Expecting value"),
        (b"[,1]", 1, "Expecting value"),
        (b"[1,\n2 3]", 2, "',' or ']' was expected after an item, not '3]'"),
        (b"[1,\n2\n", 3, "the file ends; was it cut short?"),
        (b'[1,\n{"a": [1,\n', 2, "the file ends inside the item that starts here"),
        (b'[1,\n{"a": "b}, 5]', 2, "a quote is missing"),
        (b"[1]\n[2]", 2, "the list has ended, but more text follows, not '[2]'"),
        (b'[1,\n{"a": NaN}]', 2, "NaN is not a JSON number"),
        (b"[1,\n-Infinity]", 2, "-Infinity is not a JSON number"),
        (b'[1,\n{"a": 1e400}]', 2, "a number that is too large, 1e400"),
        (b"[1,\n" + b"1" * 301 + b"]", 2, "a number of 301 digits"),
        (b'[1,\n"\xff"]', 2, "byte 0xff is not UTF-8"),
        (b'[1,\n\n"\xe2\x82', 3, "is not UTF-8"),
        (b'[1,\n"a\nb"]', 2, "Invalid control character"),
        (b"[1,\n" + b"[" * 100_000, 2, "recursion"),
        (b"[1,\n" + b"7" * 5000 + b"]", 2, "digits"),
        ("[1]".encode("utf-16"), 1, "byte 0xff is not UTF-8"),
    ],
)
@pytest.mark.parametrize("read_bytes", [20, 1 << 20])
def test_what_is_no_list_is_refused_with_file_and_line(tmp_path, monkeypatch, content, line, words, read_bytes):
    monkeypatch.setattr(json_stream, "READ_BYTES", read_bytes)
    path = write(tmp_path, content)
    with pytest.raises(DataError) as caught:
        list(iterate_json_list(path))
    assert str(caught.value).startswith(f"{path}:{line}: ") and words in str(caught.value)


def test_columns_count_from_the_line_start_across_buffers(tmp_path, monkeypatch):
    """A whole data set on one line is common, so the line alone would not help to find the place."""
    monkeypatch.setattr(json_stream, "READ_BYTES", 16)
    text = json.dumps(["abc"] * 100)
    broken = text[:491] + "!" + text[492:]  # in place of the quote that opens item 70
    with pytest.raises(DataError, match=r":1: .* \(column 492\)"):
        list(iterate_json_list(write(tmp_path, broken)))


def test_a_file_cut_anywhere_yields_whole_items_and_then_an_error(tmp_path):
    items = [{"id": number, "sent": f"dog {number}"} for number in range(6)]
    text = json.dumps(items, indent=1)
    for end in range(len(text)):
        path, seen = write(tmp_path, text[:end]), []
        with pytest.raises(DataError, match=rf"^{path}:\d+: "):
            for _, item in iterate_json_list(path):
                seen.append(item)
        assert seen == items[: len(seen)] and len(seen) >= text[:end].count("}")


def test_mutated_files_are_read_or_refused_but_never_crash(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "READ_BYTES", 40)
    rng = random.Random(0)
    original = json.dumps(ITEMS, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
    refused = 0
    for _ in range(400):
        mutated = bytearray(original)
        for _ in range(rng.randint(1, 4)):
            mutated[rng.randrange(len(mutated))] = rng.randrange(256)
        path = write(tmp_path, bytes(mutated))
        try:
            items = [item for _, item in iterate_json_list(path)]
        except DataError as error:
            assert str(error).startswith(f"{path}:")
            refused += 1
        else:
            assert items == json.loads(mutated.decode("utf-8-sig"))
    assert refused > 200


def test_memory_stays_at_a_few_buffers(tmp_path):
    path = write(tmp_path, json.dumps([{"sent": "x" * 1000}] * 15_000))  # 15 MB on one line
    tracemalloc.start()
    assert sum(1 for _ in iterate_json_list(path)) == 15_000
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6


def test_an_item_without_end_does_not_fill_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "READ_BYTES", 100)
    monkeypatch.setattr(json_stream, "LONGEST_ITEM", 1000)
    path = write(tmp_path, '[1, "' + "x" * 100_000 + '"]')
    with pytest.raises(DataError, match=r":1: the item that starts here passes 1,000 characters"):
        list(iterate_json_list(path))


def test_a_missing_file_names_the_program_that_helps(tmp_path):
    for read in (read_json, lambda path: list(iterate_json_list(path))):
        with pytest.raises(UserError, match=r"none.json is missing; `python -m clip_vl.prepare check`"):
            read(tmp_path / "none.json")
    with pytest.raises(UserError, match="Is a directory"):
        read_json(tmp_path)


def test_a_single_value_is_read_whole_and_checked(tmp_path):
    assert read_json(write(tmp_path, ' {"a": [1, 2]}\n')) == {"a": [1, 2]}
    assert read_json(write(tmp_path, "12")) == 12
    with pytest.raises(DataError, match=r":2: .*more text follows"):
        read_json(write(tmp_path, "{}\n{}"))
    with pytest.raises(DataError, match=r":2: .*Expecting"):
        read_json(write(tmp_path, '{"a":\n oops and more than sixteen characters}'))


def test_an_object_is_read_member_by_member_with_their_lines(tmp_path, monkeypatch):
    monkeypatch.setattr(json_stream, "READ_BYTES", 3)
    content = {"a": {"b": [1, {"c": "}"}]}, "\u00e9": 12, "": []}
    path = tmp_path / "a.json"
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
    members = list(iterate_json_object(path))
    assert {key: value for _, key, value in members} == content
    assert [line for line, *_ in members] == [2, 10, 11]
    path.write_text("{}")
    assert list(iterate_json_object(path)) == []


def test_lines_hold_objects_and_a_fault_is_named_by_its_line():
    lines = b'\xef\xbb\xbf{"a": "\xe2\x80\xa8"}\n\n {"b": 2} \r\n'  # a byte order mark; a line separator in a string
    assert list(iterate_json_lines(io.BytesIO(lines), "f")) == [(1, {"a": "\u2028"}), (3, {"b": 2})]
    for damaged in (b'{"a": 1', b"\xff", b"NaN", b"[]", b'{"a": NaN}'):
        with pytest.raises(DataError, match=r"^f:2: "):
            list(iterate_json_lines(io.BytesIO(b"{}\n" + damaged), "f"))


def test_a_line_without_end_is_not_taken_into_memory(monkeypatch):
    monkeypatch.setattr(json_stream, "LONGEST_ITEM", 10)
    with pytest.raises(DataError, match="f:1: the line passes 10 bytes"):
        list(iterate_json_lines(io.BytesIO(b"x" * 11), "f"))


@pytest.mark.parametrize("read_bytes", [1, 7, 1 << 20])
def test_lists_that_are_members_of_an_object_come_item_by_item(tmp_path, monkeypatch, read_bytes):
    monkeypatch.setattr(json_stream, "READ_BYTES", read_bytes)
    monkeypatch.setattr(json_stream, "LONGEST_ITEM", 200)  # the list as a whole is longer
    items = [{"id": number, "list": [1, [2]]} for number in range(50)]
    path = write(tmp_path, json.dumps({"info": {"a": [1]}, "images": items, "none": [], "n": 3}))
    expected = [(1, "info", {"a": [1]}), *((1, "images", item) for item in items), (1, "n", 3)]
    assert list(iterate_json_members(path)) == expected
    for broken in ('{"a": [1, 2', '{"a": [1 2]}', '{"a": [1]} x', "{1: [2]}", "[1]"):
        with pytest.raises(DataError, match=r"items\.json:1: "):
            list(iterate_json_members(write(tmp_path, broken)))


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_json_lines_end_as_text_lines_do(end):
    objects = [{"a": "in\u2028the \x85 park"}, {"b": 1}]
    first, second = (json.dumps(value, ensure_ascii=False).encode() for value in objects)
    lines = [b"\xef\xbb\xbf" + first, b"", second]
    assert list(iterate_json_lines(io.BytesIO(end.join(lines) + end), "x")) == [(1, objects[0]), (3, objects[1])]
