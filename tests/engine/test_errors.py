"""What is printed of foreign names moves no cursor, turns no text around, and makes no line of its own."""

import pytest

from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError, printable


@pytest.mark.parametrize(
    "name, shown",
    [
        ("cat.jpg", "cat.jpg"),
        ("größe 猫 \U0001f468\u200d\U0001f469", "größe 猫 \U0001f468\u200d\U0001f469"),
        ("\x1b[2Jcat", "\\x1b[2Jcat"),
        ("\x9b31m", "\\x9b31m"),
        ("a\nrank 0: done\r", "a\\nrank 0: done\\r"),
        ("a\u2028b\u0085c\x7f", "a\\u2028b\\x85c\\x7f"),
        ("gpj.\u202etac\u2066\u200f\u061c", "gpj.\\u202etac\\u2066\\u200f\\u061c"),
        ("\ud800\udcff", "\\ud800\\udcff"),
        ("\U000e0041\ufeff", "\\U000e0041\\ufeff"),
    ],
)
def test_a_name_keeps_its_letters_and_loses_its_powers(name, shown):
    assert printable(name) == shown
    assert DataError(f"{name} is damaged").printed() == f"{shown} is damaged"
    assert DamagedImage(name, "is cut short").printed() == f"{shown}: is cut short"
    shown.encode()


def test_lines_below_a_sentence_stay_lines():
    error = UserError("a\x1b does not fit:", "key  shape", "b\n  (2,)")
    assert str(error) == "a\x1b does not fit:\nkey  shape\nb\n  (2,)"
    assert error.printed() == "a\\x1b does not fit:\nkey  shape\nb\\n  (2,)"


def test_what_the_first_rank_says_is_printable(capsys):
    dist.print0("two\nlines\x1b[31m")
    assert capsys.readouterr().out == "two\nlines\\x1b[31m\n"
