import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
import time
from pathlib import Path

import pytest

from clip_vl.datasets.storage import cache
from clip_vl.datasets.storage.cache import build_once, is_whole, user_root, writable_root
from clip_vl.engine.errors import DataError, UserError

KEY, OTHER_KEY = "ab" * 32, "cd" * 32
FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    """Whatever falls back to the user's own place stays inside the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


class Build:
    """Writes two files and notes each call in a log that all processes share."""

    def __init__(self, tmp_path, content="hello", pause=0.0):
        self.log, self.content, self.pause = tmp_path / "builds.log", content, pause

    def __call__(self, folder):
        with self.log.open("a") as file:
            file.write(f"{os.getpid()}\n")
        (folder / "small.txt").write_text(self.content)
        time.sleep(self.pause)
        (folder / "large.bin").write_bytes(bytes(cache.SMALL + 1))

    @property
    def count(self):
        return len(self.log.read_text().split()) if self.log.exists() else 0


def in_process(function, *args):
    process = FORK.Process(target=function, args=args)
    process.start()
    return process


def wait_for(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_cache_is_built_once_for_each_key(tmp_path):
    root, build = tmp_path / "cache", Build(tmp_path)
    folder = build_once(root, "things", KEY, build)
    assert folder == root / "things-abababababababab"
    assert names(folder) == ["MANIFEST.json", "large.bin", "small.txt"]
    assert build_once(root, "things", KEY, build) == folder and build.count == 1
    assert build_once(root, "things", OTHER_KEY, build) != folder and build.count == 2
    assert names(root) == ["things-abababababababab", "things-cdcdcdcdcdcdcdcd"]  # no lock, no temporary folder


def test_a_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "half.txt").write_text("half")
        raise DataError("train.json:3: wrong")

    with pytest.raises(DataError, match="wrong"):
        build_once(tmp_path / "cache", "things", KEY, fail)
    assert names(tmp_path / "cache") == []
    assert is_whole(build_once(tmp_path / "cache", "things", KEY, Build(tmp_path)))


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path):
    def fill(folder):
        (folder / "half.txt").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"the cache .*things-abab.* cannot be built: No space left on device"):
        build_once(tmp_path / "cache", "things", KEY, fill)
    assert names(tmp_path / "cache") == []


@pytest.mark.parametrize("next_key", [KEY, OTHER_KEY])
def test_what_a_killed_builder_leaves_is_swept_by_the_next_build(tmp_path, next_key):
    root = tmp_path / "cache"
    killed = in_process(build_once, root, "things", KEY, Build(tmp_path, pause=60))
    wait_for(lambda: list(root.glob(".things-*/small.txt")))
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    assert len(names(root)) == 2  # its temporary folder and its lock file
    build = Build(tmp_path, content="new")
    folder = build_once(root, "things", next_key, build)
    assert (folder / "small.txt").read_text() == "new" and names(root) == [folder.name]


def test_a_sweep_spares_builders_at_work(tmp_path):
    root, slow = tmp_path / "cache", Build(tmp_path, pause=1.0)
    process = in_process(build_once, root, "things", KEY, slow)
    wait_for(lambda: list(root.glob(".things-*/small.txt")))
    build_once(root, "things", OTHER_KEY, Build(tmp_path))
    assert list(root.glob(".things-abab*/small.txt")), "the sweep took the folder of a living builder"
    process.join()
    assert process.exitcode == 0 and names(root) == ["things-abababababababab", "things-cdcdcdcdcdcdcdcd"]


def test_processes_at_once_build_once(tmp_path):
    root, build = tmp_path / "cache", Build(tmp_path, pause=0.3)
    processes = [in_process(build_once, root, "things", KEY, build) for _ in range(4)]
    folder = build_once(root, "things", KEY, build)
    assert is_whole(folder)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert build.count == 1 and names(root) == [folder.name]


def test_one_who_waited_for_a_killed_builder_builds(tmp_path):
    root = tmp_path / "cache"
    killed = in_process(build_once, root, "things", KEY, Build(tmp_path, pause=60))
    wait_for(lambda: list(root.glob(".things-*/small.txt")))
    waiting = in_process(build_once, root, "things", KEY, Build(tmp_path))
    time.sleep(0.2)
    assert waiting.is_alive()
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    waiting.join(10)
    assert waiting.exitcode == 0 and names(root) == ["things-abababababababab"]


def test_who_waited_for_a_removed_lock_file_waits_for_the_new_one(tmp_path):
    """A holder removes its file before it lets go; in between another process may have made and locked a new one."""
    path, entered = tmp_path / ".things.lock", threading.Event()
    first = cache._locked_file(path, wait=True)
    waiter = threading.Thread(target=lambda: cache._locked_file(path, wait=True) and entered.set())
    waiter.start()
    time.sleep(0.1)  # now it waits for the first file
    path.unlink()
    second = cache._locked_file(path, wait=True)
    os.close(first)
    assert not entered.wait(0.2)
    os.close(second)
    waiter.join(5)
    assert entered.is_set()


def truncate(path):
    os.truncate(path, path.stat().st_size - 1)


def flip(path):
    data = bytearray(path.read_bytes())
    data[0] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: truncate(folder / "large.bin"),
        lambda folder: truncate(folder / "small.txt"),
        lambda folder: flip(folder / "small.txt"),
        lambda folder: (folder / "large.bin").unlink(),
        lambda folder: truncate(folder / "MANIFEST.json"),
        lambda folder: (folder / "MANIFEST.json").write_text("[]"),
        lambda folder: (folder / "MANIFEST.json").write_text('{"files": {"small.txt": 3}}'),
        lambda folder: (folder / "MANIFEST.json").unlink(),
        lambda folder: shutil.rmtree(folder),
    ],
)
def test_a_damaged_cache_is_built_again(tmp_path, damage):
    root, build = tmp_path / "cache", Build(tmp_path)
    folder = build_once(root, "things", KEY, build)
    mapped = (folder / "small.txt").open()  # a run that is using it
    damage(folder)
    assert not is_whole(folder)
    assert build_once(root, "things", KEY, build) == folder
    assert is_whole(folder) and build.count == 2 and names(root) == [folder.name]
    mapped.close()


def test_a_file_system_without_locks_still_gets_whole_caches(tmp_path, monkeypatch):
    """Then several may build; every one returns a whole folder, and a sweep touches nothing it cannot judge."""

    def no_locks(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    root, build = tmp_path / "cache", Build(tmp_path, pause=0.3)
    processes = [in_process(build_once, root, "things", KEY, build) for _ in range(3)]
    wait_for(lambda: build.count == 3)
    at_work = len(list(root.glob(f"*{cache.UNFINISHED}")))
    build_once(root, "things", OTHER_KEY, Build(tmp_path))
    assert at_work == len(list(root.glob(f"*{cache.UNFINISHED}"))) == 3
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert is_whole(root / "things-abababababababab") and not list(root.glob(".*"))


def as_nobody(function):
    """Run `function` as a user without rights (root may write everywhere) and return what it returns or raises."""
    queue = FORK.SimpleQueue()

    def run():
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(65534)
            os.setuid(65534)
        try:
            queue.put(function())
        except Exception as error:
            queue.put(error)

    process = in_process(run)
    process.join()
    return queue.get()


@pytest.fixture
def open_path():
    """A folder that every user can reach (pytest's own are private), with the place that a user without rights owns."""
    folder = Path(tempfile.mkdtemp(prefix="clip_vl_test_"))
    folder.chmod(0o755)
    (folder / "data").mkdir()
    (folder / "home").mkdir()
    (folder / "home").chmod(0o777)
    yield folder
    for locked in (folder / "data", folder / "data" / "cache"):
        if locked.exists():
            locked.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_data_folder_falls_back_to_the_users_own_place(open_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(open_path / "home"))
    root = open_path / "data" / "cache"
    (open_path / "data").chmod(0o555)

    def use():
        folders = [
            build_once(root, "things", key, lambda folder: (folder / "a").touch()) for key in (KEY, OTHER_KEY, KEY)
        ]
        return [str(folder) for folder in folders]

    folders = as_nobody(use)
    own = str(user_root(root))
    assert own.startswith(f"{open_path}/home/clip_vl/")
    assert folders == [
        f"{own}/things-abababababababab",
        f"{own}/things-cdcdcdcdcdcdcdcd",
        f"{own}/things-abababababababab",
    ]
    said = capfd.readouterr().out
    assert said == f"caches go to {own}, because {root}: Permission denied\n"  # once, though two were built


def test_a_whole_cache_in_a_read_only_folder_is_used_where_it_is(open_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_CACHE_HOME", str(open_path / "home"))
    root = open_path / "data" / "cache"
    folder = build_once(root, "things", KEY, lambda folder: (folder / "a").touch())
    root.chmod(0o555)
    assert as_nobody(lambda: str(build_once(root, "things", KEY, None))) == str(folder)
    assert capfd.readouterr().out == "" and names(open_path / "home") == []


def test_nowhere_to_write_is_one_sentence(open_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    (open_path / "data").chmod(0o555)
    error = as_nobody(lambda: build_once(open_path / "data" / "cache", "things", KEY, lambda folder: None))
    assert isinstance(error, UserError) and "no folder for caches is writable" in str(error)
    assert str(open_path) in str(error) and "/proc/none" in str(error)


def test_the_manifest_vouches_for_size_and_small_content(tmp_path):
    folder = build_once(tmp_path / "cache", "things", KEY, Build(tmp_path))
    files = json.loads((folder / "MANIFEST.json").read_text())["files"]
    assert {name: entry["size"] for name, entry in files.items()} == {"large.bin": cache.SMALL + 1, "small.txt": 5}
    assert files["large.bin"]["sha256"] is None
    assert files["small.txt"]["sha256"] == "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def test_a_user_without_a_home_has_a_place_for_caches(tmp_path, monkeypatch):
    def unknown(_):
        raise KeyError

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)  # what a container's arbitrary uid meets
    assert user_root(tmp_path).is_relative_to(tempfile.gettempdir())
