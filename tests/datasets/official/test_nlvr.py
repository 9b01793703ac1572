"""NLVR's official files -> statements: the forms of both versions, hostile archives, interruptions, the real ones."""

import io
import json
import zipfile

import pytest
from PIL import Image

from clip_vl.datasets.official import nlvr as module
from clip_vl.datasets.official.nlvr import convert_nlvr, convert_nlvr2
from clip_vl.datasets.storage.json_stream import iterate_json_list
from clip_vl.engine.errors import DataError, UserError

EXAMPLE = {"identifier": "7-0", "directory": "3", "sentence": "There is a box.", "label": "true"}


def png(level):
    buffer = io.BytesIO()
    Image.new("RGB", (4, 1), (level, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def write_archive(root, split="dev", examples=(EXAMPLE,), pictures=None, compression=zipfile.ZIP_DEFLATED):
    """An archive in the original layout; `pictures` replaces or adds members, None leaves one out."""
    path = root / "official" / f"nlvr_{split}.zip"
    path.parent.mkdir(exist_ok=True)
    members = {f"nlvr/{split}/{split}.json": "".join(json.dumps(example) + "\n" for example in examples).encode()}
    for example in examples:
        for order in range(6):
            name = f"{split}-{example.get('identifier')}-{order}.png"
            members[f"nlvr/{split}/images/{example.get('directory')}/{name}"] = png(order)
    members |= pictures or {}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            if data is not None:
                archive.writestr(name, data)
    return path


def rows(root, path):
    return [row for _, row in iterate_json_list(root / path)]


def files(root):
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


def test_an_example_is_six_statements_about_six_pictures(tmp_path):
    write_archive(tmp_path, examples=[EXAMPLE, EXAMPLE | {"identifier": "7-1", "label": "false"}])
    assert convert_nlvr(tmp_path) == [tmp_path / "nlvr" / "dev.json"]
    converted = rows(tmp_path, "nlvr/dev.json")
    assert converted[4] == {
        "identifier": "dev-7-0-4", "img0": "dev-7-0-4", "label": 1, "sent": "There is a box.", "directory": "3",
    }  # fmt: skip
    assert [row["label"] for row in converted] == [1] * 6 + [0] * 6
    assert (tmp_path / "nlvr_raw_images" / "dev-7-1-5.png").read_bytes() == png(5)
    assert len(list((tmp_path / "nlvr_raw_images").iterdir())) == 12


def test_the_real_archives_hold_what_was_published(real_data, tmp_path, monkeypatch):
    """989 and 990 examples, 267 and 266 sentences, 547 and 556 examples true; the pictures stay inside."""
    monkeypatch.setattr(module, "atomic_write", lambda target, data, durable: None)
    (tmp_path / "nlvr_raw_images").mkdir()
    convert_nlvr(tmp_path, [real_data / "nlvr" / f"nlvr_{split}.zip" for split in ("dev", "test")])
    for split, examples, sentences, true in (("dev", 989, 267, 547), ("test", 990, 266, 556)):
        converted = rows(tmp_path, f"nlvr/{split}.json")
        assert len(converted) == 6 * examples and sum(row["label"] for row in converted) == 6 * true
        assert len({row["identifier"].split("-")[1] for row in converted}) == sentences


def test_an_interrupted_conversion_keeps_its_pictures_and_is_completed(tmp_path, monkeypatch):
    write_archive(tmp_path)
    write, written = module.atomic_write, []

    def interrupted(target, data, durable):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(target.name)
        write(target, data, durable)

    monkeypatch.setattr(module, "atomic_write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        convert_nlvr(tmp_path)
    assert not (tmp_path / "nlvr").exists() and len(list((tmp_path / "nlvr_raw_images").iterdir())) == 3
    written.clear()
    assert len(convert_nlvr(tmp_path)) == 1 and written == [f"dev-7-0-{order}.png" for order in (3, 4, 5)]
    written.clear()
    assert convert_nlvr(tmp_path) == [] and written == []


def test_a_picture_cut_short_is_written_again(tmp_path):
    write_archive(tmp_path)
    convert_nlvr(tmp_path)
    picture = tmp_path / "nlvr_raw_images" / "dev-7-0-2.png"
    picture.write_bytes(picture.read_bytes()[:10])
    convert_nlvr(tmp_path)
    assert picture.read_bytes() == png(2)


def test_members_that_the_json_does_not_name_stay_in_the_archive(tmp_path):
    write_archive(
        tmp_path, pictures=dict.fromkeys(["../../evil.png", "/evil.png", "nlvr/dev/images/3/other.png"], b"x")
    )
    convert_nlvr(tmp_path)
    assert not [name for name in files(tmp_path) if "evil" in name or "other" in name]
    assert len(files(tmp_path)) == 8


@pytest.mark.parametrize(
    "change, words",
    [
        ({"identifier": "../../7-0"}, r"dev.json:2 .*identifier '../../7-0' is not of the form of 3776-0"),
        ({"identifier": "7-0-1"}, "is not of the form of 3776-0"),
        ({"identifier": 7}, "dev.json:2 .*'identifier' is a int, not a string"),
        ({"directory": "../3"}, "dev.json:2 .*directory '../3' is not of the form of 2"),
        ({"sentence": None}, "dev.json:2 .*'sentence' is a NoneType"),
        ({"label": "maybe"}, "dev.json:2 .*the label 'maybe' is neither true nor false"),
    ],
)
def test_a_wrong_example_is_named_by_its_line_and_leaves_nothing(tmp_path, change, words):
    write_archive(tmp_path, examples=[EXAMPLE, EXAMPLE | change])
    with pytest.raises(DataError, match=words) as caught:
        convert_nlvr(tmp_path)
    assert "nlvr_dev.zip/nlvr/dev/dev.json:2" in str(caught.value)
    assert files(tmp_path) == ["official/nlvr_dev.zip"]


def test_a_missing_key_a_missing_picture_and_a_missing_json_are_named(tmp_path):
    write_archive(tmp_path, examples=[{k: v for k, v in EXAMPLE.items() if k != "sentence"}])
    with pytest.raises(DataError, match=r"dev.json:1 has an entry without the key 'sentence'"):
        convert_nlvr(tmp_path)
    write_archive(tmp_path, pictures={"nlvr/dev/images/3/dev-7-0-3.png": None})
    with pytest.raises(DataError, match=r"has no nlvr/dev/images/3/dev-7-0-3.png"):
        convert_nlvr(tmp_path)
    write_archive(tmp_path, pictures={"nlvr/dev/dev.json": None})
    with pytest.raises(DataError, match=r"has no nlvr/dev/dev.json; is it NLVR v1"):
        convert_nlvr(tmp_path)


def test_a_bomb_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    write_archive(tmp_path, pictures={"nlvr/dev/images/3/dev-7-0-0.png": bytes(module.MAX_IMAGE + 1)})
    with pytest.raises(DataError, match=r"dev-7-0-0.png has more than 1,048,576 bytes"):
        convert_nlvr(tmp_path)
    monkeypatch.setattr(module, "MAX_IMAGES", 5 * len(png(0)))
    write_archive(tmp_path)
    with pytest.raises(DataError, match="has images of"):
        convert_nlvr(tmp_path)
    monkeypatch.setattr(module, "MAX_JSON", 10)
    with pytest.raises(DataError, match=r"dev.json has more than 10 bytes"):
        convert_nlvr(tmp_path)
    assert files(tmp_path) == ["official/nlvr_dev.zip"]


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_damaged_bytes_are_named(tmp_path, compression):
    path = write_archive(tmp_path, compression=compression)
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo("nlvr/dev/images/3/dev-7-0-1.png")
        offset = info.header_offset + 30 + len(info.filename) + info.compress_size // 2
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"dev-7-0-1.png cannot be read .*fetch the archive again"):
        convert_nlvr(tmp_path)


def test_another_compression_or_no_archive_at_all_is_refused(tmp_path):
    path = write_archive(tmp_path, compression=zipfile.ZIP_LZMA)
    with pytest.raises(DataError, match="another compression than deflate"):
        convert_nlvr(tmp_path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(DataError, match="is not a whole zip archive"):
        convert_nlvr(tmp_path)
    with pytest.raises(UserError, match="is not an archive of NLVR v1"):
        convert_nlvr(tmp_path, [tmp_path / "shapes.zip"])
    with pytest.raises(UserError, match=r"there is no .*nlvr_test.zip"):
        convert_nlvr(tmp_path, [tmp_path / "nlvr_test.zip"])


# ---- NLVR2

PAIR = {"identifier": "dev-850-2-1", "sentence": "Both show dogs.", "label": "True", "left_url": "a", "right_url": "b"}


def write_nlvr2(root, *entries, split="dev"):
    path = root / "official" / f"nlvr2_{split}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(entry if isinstance(entry, str) else json.dumps(entry) for entry in entries))
    return path


def test_statements_of_nlvr2_name_the_pair_and_hidden_labels_are_left_out(tmp_path):
    hidden = {"identifier": "test2-1-0-0", "sentence": "One\u2028cat."}
    write_nlvr2(tmp_path, PAIR, "", PAIR | {"identifier": "dev-850-2-0", "label": "False"})
    write_nlvr2(tmp_path, hidden, split="test2")
    assert [path.name for path in convert_nlvr2(tmp_path)] == ["dev.json", "test2.json"]
    right, wrong = rows(tmp_path, "nlvr2/dev.json")
    assert right == {
        "identifier": "dev-850-2-1", "img0": "dev-850-2-img0", "img1": "dev-850-2-img1", "label": 1,
        "sent": "Both show dogs.", "uid": "dev-850-2-1",
    }  # fmt: skip
    assert wrong["label"] == 0
    assert rows(tmp_path, "nlvr2/test2.json") == [
        {"identifier": "test2-1-0-0", "img0": "test2-1-0-img0", "img1": "test2-1-0-img1", "sent": "One\u2028cat.",
         "uid": "test2-1-0-0"},
    ]  # fmt: skip
    assert convert_nlvr2(tmp_path) == []


@pytest.mark.parametrize(
    "entry, words",
    [
        ('{"identifier": "dev-', "nlvr2_dev.json:2: not valid JSON: .*cut short"),
        ("[1]", "nlvr2_dev.json:2: a JSON object was expected, not a list"),
        (PAIR | {"identifier": "dev-850/2-1-0"}, r"nlvr2_dev.json:2 .*is not of the form of dev-850-2-1"),
        (PAIR | {"label": "yes"}, r"nlvr2_dev.json:2 .*neither true nor false"),
        ({"identifier": "dev-850-2-1"}, "nlvr2_dev.json:2 has an entry without the key"),
        ("[" * 100_000, "nlvr2_dev.json:2: not valid JSON"),
    ],
)
def test_a_wrong_line_is_named_and_leaves_no_half_file(tmp_path, entry, words):
    write_nlvr2(tmp_path, PAIR, entry)
    with pytest.raises(DataError, match=words):
        convert_nlvr2(tmp_path)
    assert files(tmp_path) == ["official/nlvr2_dev.json"]
