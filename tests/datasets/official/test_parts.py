"""The catalogue of a data root: commands that a shell can run, and what counts as being there."""

import shlex
import subprocess
import zipfile

from clip_vl.datasets.official.parts import OFFICIAL_PARTS, PARTS, PURPOSES, TASK_PARTS, clip_parts

CLIP = clip_parts({"RN50": "a" * 64, "RN101": "b" * 64})


def test_every_purpose_has_parts_and_no_path_stands_twice():
    parts = (*PARTS, *TASK_PARTS, *OFFICIAL_PARTS, *CLIP)
    assert {purpose for part in parts for purpose in part.uses} == set(PURPOSES)
    assert len({part.path for part in parts}) == len(parts)


def test_commands_are_https_and_quote_the_root_for_the_shell():
    root = "my data; rm -rf $HOME"
    for part in (*PARTS, *TASK_PARTS, *OFFICIAL_PARTS, *CLIP):
        command = part.command(root)
        words = shlex.split(command)
        assert words[0] in {"wget", "mkdir", "python", "{"} and "http://" not in command
        assert {word.partition("/")[0] for word in words if word.startswith("my data")} == {root}
        then = {words[i + 1] for i, word in enumerate(words) if word == "&&"}
        assert then <= {"wget", "unzip", "gunzip", "tar", "git"}
        subprocess.run(["bash", "-n", "-c", command], check=True)  # reads it, runs nothing


def test_the_pictures_of_nlvr_come_as_the_archive_that_the_conversion_reads(tmp_path):
    """The command on a made repository in the place of the official clone."""
    clone, part = tmp_path / "official" / "nlvr", next(p for p in OFFICIAL_PARTS if p.path.endswith("nlvr_dev.zip"))
    (clone / "nlvr" / "dev").mkdir(parents=True)
    (clone / "nlvr" / "dev" / "dev.json").write_text("{}")
    git = ["git", "-C", str(clone), "-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *words], check=True)
    subprocess.run(["bash", "-c", part.command(tmp_path)], check=True)
    with zipfile.ZipFile(part.find(tmp_path)) as archive:
        assert "nlvr/dev/dev.json" in archive.namelist()


def test_a_damaged_file_is_removed_before_it_is_fetched_again():
    words = shlex.split(CLIP[0].command("my data", again=True))
    assert words[:4] == ["rm", "my data/clip/RN50.pt", "&&", "wget"]


def test_a_part_is_there_when_it_holds_something(tmp_path):
    vocabulary, weights = (p for p in PARTS if p.path.endswith(("vocab.txt", "model.safetensors")))
    folder = tmp_path / "bert-base-uncased"
    folder.mkdir()
    (folder / "vocab.txt").touch()
    assert vocabulary.find(tmp_path) is None
    (folder / "vocab.txt").write_text("[PAD]")
    assert vocabulary.find(tmp_path) == folder / "vocab.txt"
    assert weights.find(tmp_path) is None
    (folder / "pytorch_model.bin").write_text("x")
    assert weights.find(tmp_path) == folder / "pytorch_model.bin"


def test_an_empty_image_folder_is_not_there(tmp_path):
    part = next(part for part in PARTS if part.path == "mscoco/val2014")
    (tmp_path / "mscoco" / "val2014").mkdir(parents=True)
    assert part.find(tmp_path) is None
    (tmp_path / "mscoco" / "val2014" / "a.jpg").touch()
    assert part.find(tmp_path) is not None


def test_the_address_of_a_clip_model_contains_its_digest():
    assert CLIP[0].sha256 == "a" * 64 and f"/{'a' * 64}/RN50.pt" in CLIP[0].fetch
    assert CLIP[0].uses == ("weights",) and CLIP[1].uses == ()
