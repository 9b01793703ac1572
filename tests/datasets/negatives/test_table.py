"""The published table is read whole and safely, and what is written is read back."""

import pytest

from clip_vl.datasets.negatives.table import (
    NegativeLMDB,
    NegativeRow,
    read_tsv,
    row_id,
    subset,
    write_lmdb,
    write_tsv,
)
from clip_vl.engine.errors import DataError, UserError

ROWS = [
    NegativeRow("A cat's hat.", "a.jpg", ("A hat's cat.", 'a "hat"\tcat'), (1, 2)),
    NegativeRow("Dogs – and\nmore", "b.jpg", (), (2, 0)),
    NegativeRow("A bird", "c.jpg", ("A bird?",), ()),
]


def test_the_published_file_is_read_whole(real_data):
    path = real_data / "probes" / "negclip" / "valid_neg_clip.tsv"
    if not path.exists():
        pytest.skip(f"no {path}")
    rows = read_tsv(path)
    assert len(rows) == 4839
    assert {len(row.neg_image) for row in rows} == {3}
    assert [sum(len(row.neg_caption) == n for row in rows) for n in range(1, 6)] == [2891, 1418, 480, 47, 3]


def test_a_table_written_is_read_back(tmp_path):
    write_tsv(tmp_path / "t.tsv", ROWS)
    assert read_tsv(tmp_path / "t.tsv") == ROWS
    assert [path.name for path in tmp_path.iterdir()] == ["t.tsv"]


def test_a_subset_points_to_the_same_images():
    part = subset(ROWS, [2, 0])
    assert [row.filepath for row in part] == ["c.jpg", "a.jpg"]
    assert [part[j].filepath for j in part[1].neg_image] == ["c.jpg"]  # b.jpg is not there any more


def table(tmp_path, *lines):
    path = tmp_path / "t.tsv"
    path.write_text("\n".join(["\ttitle\tfilepath\tneg_caption\tneg_image", *lines]) + "\n")
    return path


GOOD = "0\ta\ta.jpg\t['b']\t[1]"


@pytest.mark.parametrize(
    "line, sentence",
    [
        ("1\ta\ta.jpg\t['b']\t[7]", r"t.tsv:3: neighbour 7 is no row of this file, which has 2"),
        ("1\ta\ta.jpg\t['b']\t[-1]", r"t.tsv:3: neighbour -1 is no row"),
        ("1\ta\ta.jpg\t['b']\t[1]", r"t.tsv:3: the row is its own neighbour"),
        ("1\ta\ta.jpg\t['b']\t[0, 0]", r"t.tsv:3: a neighbour stands there twice: \[0, 0\]"),
        ("5\ta\ta.jpg\t['b']\t[0]", r"t.tsv:3: row '5' stands where row 1 is expected"),
        ("1\ta\ta.jpg\t['b']", r"t.tsv:3: the row has 4 columns, the header 5"),
        ("1\ta\ta.jpg\t__import__('os').system('true')\t[0]", r"t.tsv:3: neg_caption is not a list of str"),
        ("1\ta\ta.jpg\t['b', 3]\t[0]", r"t.tsv:3: neg_caption is not a list of str"),
        ("1\ta\ta.jpg\t['b']\t[True]", r"t.tsv:3: neg_image is not a list of int"),
        ("1\ta\ta.jpg\t['b']\t" + "[" * 50_000, r"t.tsv:3: neg_image is not a list of int"),
        ("1\ta\ta.jpg\t['" + "b" * 120_000 + "']\t[0]", r"t.tsv:3: neg_caption has 120,004 characters"),
    ],
)
def test_a_fault_is_named_with_its_line(tmp_path, line, sentence):
    with pytest.raises(DataError, match=sentence):
        read_tsv(table(tmp_path, GOOD, line))


def test_other_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"none\.tsv cannot be read: No such file"):
        read_tsv(tmp_path / "none.tsv")
    (tmp_path / "x.tsv").write_text("title\tfilepath\n")
    with pytest.raises(DataError, match=r"x.tsv:1: the columns are \['title', 'filepath'\]"):
        read_tsv(tmp_path / "x.tsv")
    (tmp_path / "y.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match=r"y\.tsv:1: byte 0xff is not UTF-8"):
        read_tsv(tmp_path / "y.tsv")


def test_a_wrong_table_is_not_written(tmp_path):
    with pytest.raises(DataError, match="row 0: the row is its own neighbour"):
        write_tsv(tmp_path / "t.tsv", [ROWS[0]._replace(neg_image=(0,))])
    assert not list(tmp_path.iterdir())


def test_the_lmdb_names_neighbours_by_ids_that_do_not_depend_on_the_order(tmp_path):
    write_lmdb(tmp_path / "a.lmdb", ROWS)
    write_lmdb(tmp_path / "b.lmdb", subset(ROWS, [2, 1, 0]))
    one, other = NegativeLMDB(tmp_path / "a.lmdb"), NegativeLMDB(tmp_path / "b.lmdb")
    assert sorted(row_id(row) for row in ROWS) == one.keys() == other.keys()
    for key in one.keys():
        assert one.load(key) == other.load(key)
    first = one.load(row_id(ROWS[0]))
    assert first[:3] == ROWS[0][:3]
    assert [one.load(key).filepath for key in first.neg_image] == ["b.jpg", "c.jpg"]


def test_an_lmdb_is_whole_or_not_there(tmp_path):
    (tmp_path / ".tmp-a.lmdb").mkdir()
    (tmp_path / ".tmp-a.lmdb" / "data.mdb").write_bytes(b"half")  # of a killed writer
    write_lmdb(tmp_path / "a.lmdb", ROWS)
    assert [path.name for path in tmp_path.iterdir()] == ["a.lmdb"]
    with pytest.raises(UserError, match="is there already"):
        write_lmdb(tmp_path / "a.lmdb", ROWS)
    with pytest.raises(UserError, match="there are no mined negatives"):
        NegativeLMDB(tmp_path / "none.lmdb")
    with pytest.raises(DataError, match="has no row 00"):
        NegativeLMDB(tmp_path / "a.lmdb").load(b"\0")
