"""Packed text: the golden block boundaries, the files, and damage."""

import numpy as np
import pytest

from clip_vl.datasets.text.packing import PackedText, clean_lines, pack, write_packed
from clip_vl.engine.errors import DataError, UserError

LENGTHS = [5, 3, 9, 20, 1, 4, 8, 2, 33, 6, 2, 16, 7, 0, 3]
BLOCKS = [[0, 8], [32, 9], [68, 16], [132, 4], [148, 15], [208, 16], [272, 16], [336, 1], [340, 8], [372, 16],
          [436, 10]]  # fmt: skip


def lines():
    ends = np.cumsum(LENGTHS)
    return [np.arange(end - length, end, dtype=np.int32) for end, length in zip(ends, LENGTHS)]


def test_blocks_and_offsets_are_the_published_ones(tmp_path):
    """Golden value `packing` of the published code, for blocks of 16."""
    assert write_packed(tmp_path / "owt", lines(), 16) == len(BLOCKS)
    assert np.fromfile(tmp_path / "owt.idx", np.int64).reshape(-1, 2).tolist() == BLOCKS
    packed = PackedText(tmp_path / "owt")
    assert len(packed) == len(BLOCKS)
    assert np.concatenate([packed[i] for i in range(len(packed))]).tolist() == list(range(sum(LENGTHS)))


def test_no_block_is_empty_and_nothing_gives_nothing():
    assert [block.tolist() for block in pack([[], [], [1], []], 4)] == [[1]]
    assert list(pack([], 4)) == list(pack([[]], 4)) == []
    assert [len(block) for block in pack([[1] * 8], 4)] == [4, 4]


def test_a_file_that_was_cut_off_is_refused(tmp_path):
    write_packed(tmp_path / "owt", lines(), 16)
    with pytest.raises(UserError, match="is missing"):
        PackedText(tmp_path / "other")
    whole = (tmp_path / "owt.bin").read_bytes()
    (tmp_path / "owt.bin").write_bytes(whole[:-8])
    with pytest.raises(DataError, match="points outside"):
        PackedText(tmp_path / "owt")
    (tmp_path / "owt.bin").write_bytes(whole[:-3])
    with pytest.raises(DataError, match="is cut off"):
        PackedText(tmp_path / "owt")


def test_lines_without_text_are_dropped():
    assert list(clean_lines(["", " \n", "a\n", "---\n", "b\0c", "--- d"])) == ["a", "--- d"]
