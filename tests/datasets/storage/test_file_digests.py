import hashlib
import json
import os

import pytest

from clip_vl.datasets.storage import file_digests
from clip_vl.datasets.storage.cache import writable_root
from clip_vl.datasets.storage.file_digests import file_digest
from clip_vl.engine.errors import DataError, UserError


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


@pytest.fixture
def hashed(monkeypatch):
    """The files whose content was read, in order."""
    calls, sha256 = [], file_digests.sha256
    monkeypatch.setattr(file_digests, "sha256", lambda path: calls.append(path.name) or sha256(path))
    return calls


def old_file(path, content):
    """A file last changed an hour ago, as downloaded ones are."""
    path.write_bytes(content)
    os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 3600))
    return path


def test_a_digest_is_computed_once_and_then_remembered(tmp_path, hashed):
    path, root = old_file(tmp_path / "train.json", b"[]"), tmp_path / "cache"
    expected = hashlib.sha256(b"[]").hexdigest()
    assert [file_digest(path, root) for _ in range(3)] == [expected] * 3
    assert hashed == ["train.json"]
    assert [file.name for file in root.iterdir()] == ["digests.json"]


def test_changed_content_of_the_same_size_has_another_digest(tmp_path, hashed):
    path, root = old_file(tmp_path / "train.json", b"[1]"), tmp_path / "cache"
    before = file_digest(path, root)
    path.write_bytes(b"[2]")
    assert file_digest(path, root) == hashlib.sha256(b"[2]").hexdigest() != before


def test_a_file_replaced_by_another_with_the_same_time_has_another_digest(tmp_path):
    path, root = old_file(tmp_path / "train.json", b"[1]"), tmp_path / "cache"
    file_digest(path, root)
    other = tmp_path / "other.json"
    other.write_bytes(b"[2]")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)
    assert file_digest(path, root) == hashlib.sha256(b"[2]").hexdigest()


def test_a_file_that_changed_just_now_is_not_remembered(tmp_path, hashed):
    """It could change again without a new modification time."""
    path, root = tmp_path / "train.json", tmp_path / "cache"
    path.write_bytes(b"[]")
    file_digest(path, root)
    file_digest(path, root)
    assert hashed == ["train.json", "train.json"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 3}', '{"x": []}', '{"x": [1, 2, 3, 4]}'])
def test_a_damaged_memory_is_replaced(tmp_path, hashed, content):
    path, root = old_file(tmp_path / "train.json", b"[]"), tmp_path / "cache"
    root.mkdir()
    (root / "digests.json").write_text(content)
    file_digest(path, root)
    file_digest(path, root)
    assert hashed == ["train.json"]
    assert list(json.loads((root / "digests.json").read_text())) == [str(path)]


def test_several_files_are_remembered(tmp_path, hashed):
    paths, root = [old_file(tmp_path / f"{n}.json", b"%d" % n) for n in range(3)], tmp_path / "cache"
    for _ in range(2):
        for path in paths:
            file_digest(path, root)
    assert hashed == ["0.json", "1.json", "2.json"]


def test_nowhere_to_remember_is_no_reason_to_stop(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    path = old_file(tmp_path / "train.json", b"[]")
    assert file_digest(path, "/proc/none") == hashlib.sha256(b"[]").hexdigest()


def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch):
    path = old_file(tmp_path / "train.json", b"[1]")
    monkeypatch.setattr(file_digests, "sha256", lambda path: path.write_bytes(b"[1, 2]"))
    with pytest.raises(DataError, match=r"train.json changed while it was read"):
        file_digest(path, tmp_path / "cache")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"none.json is missing; `python -m clip_vl.prepare check`"):
        file_digest(tmp_path / "none.json", tmp_path / "cache")
    with pytest.raises(UserError, match=r"cannot be read: Is a directory"):
        file_digest(tmp_path, tmp_path / "cache")
