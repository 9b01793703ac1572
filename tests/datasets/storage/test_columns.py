import numpy as np
import pytest

from clip_vl.datasets.storage.columns import (
    ColumnWriter,
    RaggedColumn,
    RaggedWriter,
    TextColumn,
    TextWriter,
    WordWriter,
    read_column,
)
from clip_vl.engine.errors import DataError


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32])
@pytest.mark.parametrize("pieces", [[], [[]], [[1, 2], [], [3]], [[7] * 5000] * 300])
def test_a_column_written_in_pieces_is_the_npy_file_of_the_whole(tmp_path, dtype, pieces):
    writer = ColumnWriter(tmp_path, "numbers", dtype)
    for piece in pieces:
        writer.extend(piece)
    writer.close()
    expected = np.array([value for piece in pieces for value in piece], dtype=dtype)
    for found in (np.load(tmp_path / "numbers.npy", allow_pickle=False), read_column(tmp_path, "numbers")):
        assert found.dtype == dtype and np.array_equal(found, expected)
    assert not read_column(tmp_path, "numbers").flags.writeable


def test_a_number_too_large_for_its_column_is_an_error(tmp_path):
    with pytest.raises(OverflowError):
        ColumnWriter(tmp_path, "numbers", np.uint8).extend([256])


def test_ragged_rows_come_back_as_written(tmp_path):
    rows = [[1, 2, 3], [], [4], [], [5, 6]]
    writer = RaggedWriter(tmp_path, "rows", np.uint16)
    writer.extend(rows[:2])
    writer.extend([])
    writer.extend(rows[2:])
    writer.close()
    column = RaggedColumn(tmp_path, "rows")
    assert [row.tolist() for row in column] == rows and len(column) == 5
    for row in (5, -1):
        with pytest.raises(IndexError):
            column[row]


def test_texts_come_back_as_written(tmp_path):
    texts = ["two dogs", "", "¿Qué? 🐕", "\x00\n"]
    writer = TextWriter(tmp_path, "texts", np.uint8)
    writer.extend(texts)
    writer.extend([])
    writer.close()
    assert list(TextColumn(tmp_path, "texts")) == texts


def test_words_share_one_entry_of_the_vocabulary(tmp_path):
    writer = WordWriter(tmp_path, "kind", np.uint8)
    writer.extend(["vqa", "vg", "vqa"])
    writer.extend(["vg", ""])
    writer.close()
    assert writer.words == ["vqa", "vg", ""]
    assert read_column(tmp_path, "kind").tolist() == [0, 1, 0, 1, 2]


def test_more_words_than_the_column_can_number_are_refused(tmp_path):
    writer = WordWriter(tmp_path, "kind", np.uint8)
    writer.extend([str(number) for number in range(256)])
    with pytest.raises(DataError, match="more than 256 different values of 'kind'"):
        writer.extend(["one more"])
