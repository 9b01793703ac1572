import pytest

from clip_vl.datasets.storage.left_out import report_left_out
from clip_vl.engine.errors import DataError

REASONS = {"the caption is blank": (2, "a.csv:3"), "no caption": (1, "")}


def test_every_reason_is_printed_with_its_number_and_first_location(capsys):
    report_left_out("a.csv", REASONS, kept=3, largest_share=0.5)
    expected = "warning: a.csv: 3 of 6 captions are left out (the caption is blank: 2, first a.csv:3; no caption: 1)\n"
    assert capsys.readouterr().out == expected


def test_a_larger_share_is_an_error_and_nothing_left_out_says_nothing(capsys):
    with pytest.raises(DataError, match=r"3 of 5 rows are left out .*; at most a share of 0\.5 may be"):
        report_left_out("a.csv", REASONS, kept=2, largest_share=0.5, noun="rows")
    report_left_out("a.csv", {"no caption": (0, "")}, kept=0, largest_share=0)
    assert capsys.readouterr().out == ""
