"""Rows of text tables: held to the csv module's writer and to pandas, and quotes that open and do not close."""

import csv

import pytest

from clip_vl.datasets.storage.tables import captions_in, column_of, number_in, read_header, table_rows
from clip_vl.engine.errors import DataError, UserError


def rows_of(path, text, separator="\t"):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return [row for _, row in table_rows(path, separator)]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", ["\t", ","])
def test_what_the_csv_module_writes_comes_back(tmp_path, separator, end):
    rows = [['a "quoted" word', "1.jpg", "x"], ["tab\tand, comma", "2.jpg", ""], ["two\nlines\n", "3.jpg", '"'],
            ['"both"', "4.jpg", "U+2028 \u2028 U+0085 \x85 \v \x1c"], ["\n\n", "5.jpg", "y"]]  # fmt: skip
    with (tmp_path / "t").open("w", encoding="utf-8-sig", newline="") as file:
        quoting = csv.QUOTE_ALL if end == "\r" else csv.QUOTE_MINIMAL  # else \n stands bare beside \r
        csv.writer(file, delimiter=separator, lineterminator=end, quoting=quoting).writerows(
            [["title", "filepath", "z"], *rows]
        )
    assert [row for _, row in table_rows(tmp_path / "t", separator)] == rows
    assert read_header(tmp_path / "t", None, {"filepath"}) == (separator, ["title", "filepath", "z"])


def test_a_quote_between_tabs_that_does_not_close_its_field_is_text(tmp_path):
    rows = [["1", '"vintage poster'], ["2", "a dog"], ["3", 'keep out"'], ["4", '5" disc'], ["5", '"a" and "b"'],
            ["6", '"'], ["7", '""x'], ["8", '"still open']]  # fmt: skip
    text = "n\ttitle\n" + "".join(f"{n}\t{title}\n" for n, title in rows)
    assert rows_of(tmp_path / "t", text) == rows
    assert rows_of(tmp_path / "t", text.replace("\n", "\r\n")) == rows
    assert rows_of(tmp_path / "t", 'n\ttitle\n1\t"two\nlines"\n2\t"closed"\n') == [["1", "two\nlines"], ["2", "closed"]]
    assert rows_of(tmp_path / "t", 'title\tn\n"two\nlines"\t1\n"open\t2\n') == [["two\nlines", "1"], ['"open', "2"]]


def test_lines_are_numbered_and_a_row_of_another_width_is_named(tmp_path):
    (tmp_path / "t").write_text('n\ttitle\n\n1\t"two\nlines"\n2\tx\n')
    assert [line for line, _ in table_rows(tmp_path / "t", "\t")] == [3, 5]
    with pytest.raises(DataError, match="t:3: the row has 3 columns, the header 2"):
        rows_of(tmp_path / "t", "a\tb\n1\t2\n1\t2\t3\n")
    with pytest.raises(DataError, match="t:2: the row has 1 columns, the header 2"):
        rows_of(tmp_path / "t", 'a\tb\n"cut short\n1\t2\n')


def test_columns_are_stripped_and_must_be_there_once():
    assert column_of("t", ["", "a"], "a", "flag") == 1
    for name, sentence in (("b", "no column 'b'"), ("a", "2 columns 'a'")):
        with pytest.raises(UserError, match=sentence):
            column_of("t", ["a", "a"], name, "flag")


def test_a_cell_holds_a_caption_or_a_list_of_them():
    assert captions_in('["a dog", "it\'s \\u00fc"]') == captions_in("['a dog', \"it's ü\"]") == ["a dog", "it's ü"]
    for text in ("[unused]", "[1, 2]", "a [dog]", "['a' 'b'", "[" * 1000 + "]" * 1000):
        assert captions_in(text) == [text]
    assert captions_in("[]") == []


def test_class_numbers_mean_what_they_mean_in_pandas(tmp_path):
    pandas = pytest.importorskip("pandas")
    cells = ["3", "0.0", "-1", "nan", "", "NaN", "7.", "-1.0", "NULL", "-0.0", "+1", "1e3"]
    (tmp_path / "t.csv").write_text("y,z\n" + "".join(f"{cell},x\n" for cell in cells))
    expected = pandas.read_csv(tmp_path / "t.csv")["y"].fillna(-1).astype(int).tolist()
    assert [number_in(cell) for cell in cells] == expected == [3, 0, -1, -1, -1, -1, 7, -1, -1, 0, 1, 1000]
    for cell in ("cat", "-2", "1.5", "inf", "1e300", "1_0"):
        with pytest.raises(ValueError, match="must be an integer from 0"):
            number_in(cell)
