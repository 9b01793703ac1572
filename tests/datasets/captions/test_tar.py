"""Shards: the index against Python's tarfile in three formats, rows, and what a hostile archive may not do."""

import gzip
import io
import pickle
import tarfile

import pytest

from clip_vl.datasets.captions.sources import open_sources
from clip_vl.datasets.captions.tar import open_shards
from clip_vl.datasets.captions.tar_index import iterate_members
from clip_vl.datasets.captions.tar_names import expand_braces
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.storage.cache import writable_root
from clip_vl.engine.errors import DataError, UserError
from clip_vl.flags.captions import SourceFlags

LONG = "folder/" * 30 + "name.jpg"  # past what a plain header holds


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


def write_tar(path, members, form=tarfile.USTAR_FORMAT):
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            info.size = len(content) if info.isreg() else 0
            tar.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return path


def typed(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def shard(path, numbers):
    members = [
        (f"{n:06d}.{ext}", data) for n in numbers for ext, data in (("jpg", b"JPEG %d" % n), ("txt", b"text %d" % n))
    ]
    return write_tar(path, members)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_pythons_tarfile_finds_them(tmp_path, form):
    names = ["a.jpg", "b/äöü.txt", "empty.txt"] + (
        [LONG] if form != tarfile.USTAR_FORMAT else ["d" * 90 + "/e.jpg", "d" * 90 + "/" + "f" * 60]
    )
    members = [(name, name.encode() * (i * 50 if name != "empty.txt" else 0)) for i, name in enumerate(names)]
    path = write_tar(tmp_path / "s.tar", members, form)
    with tarfile.open(path) as tar:
        expected = [(m.name, m.offset_data, m.size) for m in tar.getmembers()]
    assert [tuple(member) for member in iterate_members(path)] == expected


def test_a_row_is_the_members_of_one_key(tmp_path):
    write_tar(tmp_path / "s.tar", [
        ("a.txt", b"a dog\n"), ("a.jpg", b"A"), ("a.cls", b"3"), ("a.json", b'{"caption": "not this"}'),
        ("b.JSON", b'{"caption": "a cat"}'), ("b.png", b"B"),
        ("lonely.jpg", b"-"), ("text.txt", b"-"),
        ("x/c.txt", b"a hen"), ("x/c.webp", b"C"),
    ])  # fmt: skip
    source = open_shards(str(tmp_path / "s.tar"), tmp_path / "cache")
    found = [(source.captions(row), source.read(row), source.label(row)) for row in range(len(source))]
    assert found == [(["a dog"], b"A", 3), (["a cat"], b"B", -1), (["a hen"], b"C", -1)]
    assert (source.meta["without_caption"], source.meta["without_image"]) == (1, 1)
    assert source.name(2) == f"{tmp_path}/s.tar:x/c.webp"
    assert len({source.image_id(row) for row in range(3)}) == 3


PAIRS = [(f"{n}.{extension}", b"%d %s" % (n, extension.encode())) for n in range(4) for extension in ("jpg", "txt")]


@pytest.mark.parametrize(
    "members",
    [
        pytest.param(sorted(PAIRS, key=lambda member: member[0][2:]), id="all images first"),
        pytest.param(PAIRS[1:] + PAIRS[:1], id="one apart"),
        pytest.param([(f"./{name}", data) for name, data in PAIRS], id="with ./"),
        pytest.param([(name.replace("0.jpg", "./0.jpg"), data) for name, data in PAIRS], id="one with ./"),
        pytest.param([(f"part.0/{name}", data) for name, data in PAIRS], id="in a folder with a dot"),
        pytest.param([(f"photo.v2.{name}", data) for name, data in PAIRS], id="keys with dots"),
        pytest.param([(name.upper(), data) for name, data in PAIRS], id="upper case"),
        pytest.param([(name.replace("jpg", "TIF"), data) for name, data in PAIRS], id="tif"),
        pytest.param([(name.replace("txt", "json"), b'\xef\xbb\xbf{"caption": "%s"}' % data if name[2] == "t" else data)
                      for name, data in PAIRS], id="json with a byte-order mark"),
        pytest.param([*PAIRS, *((f"{n}.mask.png", b"-") for n in range(4)), ("notes.md", b"-")], id="further members"),
        pytest.param(
            [each for name, data in PAIRS for each in [(f"._{name}", b"x"), (name, data), (f"__MACOSX/{name}", b"x")]]
            + [(".DS_Store", b"x"), ("x/.DS_Store", b"x"), (".cache/9.jpg", b"x"), ("x/._9.txt", b"x")],
            id="macOS",
        ),
        pytest.param([(typed("0", tarfile.DIRTYPE), b""), (typed("d/", tarfile.REGTYPE), b""), *PAIRS], id="folders"),
    ],
)  # fmt: skip
def test_all_pairs_are_found_in_any_order_and_nothing_is_missed(tmp_path, members, capsys):
    source = open_shards(str(write_tar(tmp_path / "s.tar", members)), tmp_path / "cache")
    assert {(source.read(row), *source.captions(row)) for row in range(len(source))} == {
        (b"%d jpg" % n, f"{n} txt") for n in range(4)
    }
    assert "warning" not in capsys.readouterr().out


def test_incomplete_and_doubled_keys_are_counted_as_they_are(tmp_path, capsys):
    write_tar(tmp_path / "s.tar", [
        *PAIRS, ("lonely.jpg", b"-"), ("blank.txt", b" \n"), ("blank.jpg", b"-"), ("null.png", b"-"),
        ("null.json", b'{"caption": null}'), ("text.txt", b"-"), ("raw.heic", b"-"), ("raw.txt", b"-"),
        ("1.txt", b"a later one"),
    ])  # fmt: skip
    source = open_shards(str(tmp_path / "s.tar"), tmp_path / "cache")
    assert [source.captions(row)[0] for row in range(len(source))] == ["0 txt", "a later one", "2 txt", "3 txt"]
    said = capsys.readouterr().out
    assert "5 of 9 keys are left out (no image of the key in its shard: 2; no caption" in said
    assert "1 members have the name" in said
    open_shards(str(tmp_path / "s.tar"), tmp_path / "cache")
    assert capsys.readouterr().out == said  # from the cache as well
    with pytest.raises(DataError, match=r"5 of 9 keys .*; at most a share of 0\.5 may be \(--max_left_out\)"):
        open_shards(str(tmp_path / "s.tar"), tmp_path / "cache", max_left_out=0.5)


def test_captions_of_json_may_be_several_and_blank_text_gives_way_to_them(tmp_path):
    json = b'{"caption": ["one", " two ", 3, ""]}'
    write_tar(tmp_path / "s.tar", [("a.jpg", b"A"), ("a.txt", b" "), ("a.json", json)])
    assert open_shards(str(tmp_path / "s.tar"), tmp_path / "cache").captions(0) == ["one", "two"]
    write_tar(tmp_path / "b.tar", [("a.jpg", b"A"), ("a.json", b'{"caption": "half \\ud83d"}')])
    with pytest.raises(DataError, match=r"'a\.json': .*half of a surrogate pair"):
        open_shards(str(tmp_path / "b.tar"), tmp_path / "cache")


def test_shards_follow_each_other_and_mix(tmp_path):
    for number in range(3):
        shard(tmp_path / f"a-{number:03d}.tar", range(number * 10, number * 10 + 4))
    shard(tmp_path / "b.tar", [99])
    spec = f"a-{{000..002}}.tar::{tmp_path}/b.tar:2.0"
    mixture = open_sources(spec, SourceFlags(datasets_dir=str(tmp_path)))
    expected = [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23, 99]
    assert [mixture.read(row) for row in range(len(mixture))] == [b"JPEG %d" % n for n in expected]
    assert mixture.captions(12) == ["text 99"] and mixture.segments == [(13, 2.0)]


def test_brace_names_are_those_of_the_shell():
    assert expand_braces("s-{08..10}.tar") == ["s-08.tar", "s-09.tar", "s-10.tar"]
    assert expand_braces("{0..1}/{2..3}.tar") == ["0/2.tar", "0/3.tar", "1/2.tar", "1/3.tar"]
    with pytest.raises(UserError, match="names more than 100,000 shards"):
        expand_braces("s-{0..999999999}.tar")


def test_the_index_is_kept_until_a_shard_changes(tmp_path):
    path = shard(tmp_path / "s.tar", range(3))
    first = open_shards(str(path), tmp_path / "cache")
    assert open_shards(str(path), tmp_path / "cache").folder == first.folder
    shard(path, range(4))
    assert len(open_shards(str(path), tmp_path / "cache")) == 4
    assert len(pickle.dumps(first)) < 1000 and pickle.loads(pickle.dumps(first)).read(1) == b"JPEG 1"


def test_links_and_names_are_never_followed(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("do not tell")
    write_tar(tmp_path / "s.tar", [
        ("../../escape.jpg", b"E"), ("../../escape.txt", b"its caption"),
        ("/etc/passwd.jpg", b"P"), ("/etc/passwd.txt", b"absolute"),
        (typed("link.jpg", tarfile.SYMTYPE, str(secret)), b""), ("link.txt", b"soft link"),
        (typed("hard.jpg", tarfile.LNKTYPE, str(secret)), b""), ("hard.txt", b"hard link"),
        (typed("pipe.jpg", tarfile.FIFOTYPE), b""), ("pipe.txt", b"pipe"),
    ])  # fmt: skip
    before = sorted(tmp_path.parent.rglob("*escape*"))
    source = open_shards(str(tmp_path / "s.tar"), tmp_path / "cache")
    assert [source.read(row) for row in range(len(source))] == [b"E", b"P"]
    assert sorted(tmp_path.parent.rglob("*escape*")) == before


def header(name, size, kind=tarfile.REGTYPE):
    info = tarfile.TarInfo(name)
    info.size, info.type = size, kind
    return info.tobuf(tarfile.GNU_FORMAT)


def reseal(block):
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = reseal(header("a.jpg", 0)[:124] + b"\xff" * 12 + header("a.jpg", 0)[136:])


@pytest.mark.parametrize(
    "data, sentence",
    [
        (header("a.jpg", 2**40), "'a.jpg' declares 1,099,511,627,776 bytes, more than the file has left"),
        (header("a.jpg", 2**33, b"L"), "declares 8,589,934,592 bytes"),
        (header("a", 100_000, b"L") + bytes(200_000), "a name of 100,000 bytes"),
        (header("a", 12, b"x") + b"99999 x=yyy\n" + bytes(500) + bytes(1024), "the pax header at byte 512 is damaged"),
        (NEGATIVE + bytes(1024), "there is no header of a tar file at byte 0"),
        (b"\xff" * 2048, "there is no header of a tar file at byte 0"),
        (header("a.jpg", 3) + b"abc" + bytes(509), "without the end of an archive; was it cut short?"),
        (b"", "without the end of an archive"),
        (bytes(1024), "holds no image with a caption"),
        (header("a.jpg", 0) + header("b.txt", 0) + bytes(1024), "1 keys without an image and 1 images without"),
    ],
)
def test_a_damaged_or_hostile_archive_is_refused_in_a_sentence(tmp_path, data, sentence):
    path = tmp_path / "s.tar"
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        open_shards(str(path), tmp_path / "cache")
    assert str(path) in str(caught.value) and sentence in str(caught.value)


def test_huge_texts_and_wrong_classes_are_refused(tmp_path):
    write_tar(tmp_path / "a.tar", [("a.jpg", b"A"), ("a.txt", bytes(2**20 + 1))])
    with pytest.raises(DataError, match=r"'a\.txt' has more than 1,048,576 bytes"):
        open_shards(str(tmp_path / "a.tar"), tmp_path / "cache")
    write_tar(tmp_path / "b.tar", [("a.jpg", b"A"), ("a.txt", b"x"), ("a.cls", b"cat")])
    with pytest.raises(DataError, match="'a': the class 'cat' must be"):
        open_shards(str(tmp_path / "b.tar"), tmp_path / "cache")
    write_tar(tmp_path / "c.tar", [("a.jpg", b"A"), ("a.json", b"{")])
    with pytest.raises(DataError, match=r"'a\.json' is not valid JSON"):
        open_shards(str(tmp_path / "c.tar"), tmp_path / "cache")


def test_compressed_missing_and_remote_shards_are_refused(tmp_path):
    plain = shard(tmp_path / "s.tar", [1])
    packed = tmp_path / "p.tar.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    with pytest.raises(UserError, match=r"is compressed \(gzip\)"):
        open_shards(str(packed), tmp_path / "cache")
    with pytest.raises(UserError, match=r"a-001\.tar cannot be read: No such file"):
        open_shards(f"{plain}::{tmp_path}/a-{{001..002}}.tar", tmp_path / "cache")
    with pytest.raises(UserError, match="is a remote address"):
        open_sources("https://example.org/s-{000..010}.tar", SourceFlags(datasets_dir=str(tmp_path)))


def test_a_shard_that_shrinks_while_in_use_gives_damaged_images(tmp_path):
    path = shard(tmp_path / "s.tar", range(3))
    source = open_shards(str(path), tmp_path / "cache")
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(DamagedImage, match="the shard was changed while in use"):
        source.read(2)
