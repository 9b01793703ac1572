"""Mistakes end in one clear sentence and the exit code of their kind, and nothing is lost."""

import json
import os
import pickle
import shutil
import socket
import subprocess
import time

import pytest
import torch

from clip_vl.engine.errors import ProgramError


@pytest.fixture
def root(shapes_root, tmp_path):
    """A copy of the data root to damage (images are linked, not copied)."""
    copy = tmp_path / "data"
    shutil.copytree(shapes_root, copy, ignore=shutil.ignore_patterns("cache"), copy_function=os.link)
    return copy


def rewrite(path, text):
    path.unlink()  # a link into the shared set: never write through it
    path.write_text(text)


def refused(programs, program, root, output, *more, code):
    """Run with `more` flags; it must end in an error of exit code `code`, whose one sentence is returned."""
    base = programs.PRETRAIN if program == "pretrain" else programs.ONE_STREAM
    given = [*base, *programs.TINY, "--epochs", "1", "--data_root", str(root), "--output", str(output), *more]
    with pytest.raises(ProgramError) as error:
        programs.run_here(program, *given)
    assert error.value.exit_code == code, error.value
    return str(error.value)


def test_an_error_leaves_with_its_code_and_its_sentence_alone(programs, root, tmp_path):
    done = programs.run("vqa", "--data_root", root, "--output", tmp_path / "o", "--xlayers", "0", check=False)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "--visualbert_style" in done.stderr


def test_broken_json_names_file_and_line(programs, root, tmp_path):
    path = root / "vqa" / "train.json"
    rewrite(path, path.read_text()[:2000])
    assert "train.json:1:" in refused(programs, "vqa", root, tmp_path / "o", code=3)


def test_a_missing_key_is_named(programs, root, tmp_path):
    path = root / "lxmert" / "mscoco_train.json"
    rows = json.loads(path.read_text())
    del rows[3]["img_id"]
    rewrite(path, json.dumps(rows))
    error = refused(programs, "pretrain", root, tmp_path / "o", "--train", "mscoco_train", code=3)
    assert "mscoco_train.json" in error and "img_id" in error


def test_training_and_validation_need_answers(programs, root, tmp_path):
    """A split of the server has none: its accuracy would be 0 % whatever the model."""
    for flag in ("--train", "--valid"):
        assert "vqa/test" in refused(programs, "vqa", root, tmp_path / flag, flag, "test", code=2)


def test_entries_of_the_wrong_form_are_left_out_and_counted_when_asked(programs, root, tmp_path):
    path = root / "vqa" / "train.json"
    rows = json.loads(path.read_text())
    rows[3]["label"] = {"yes": 7}
    rewrite(path, json.dumps(rows))
    refused(programs, "vqa", root, tmp_path / "strict", "--train", "train", code=3)
    more = ["--epochs", "1", "--data_root", str(root), "--output", str(tmp_path / "o"), "--train", "train"]
    done = programs.run("vqa", *programs.ONE_STREAM, *programs.TINY, *more, "--skip_bad")
    assert "warning: 1 annotation entries of the wrong form are left out; the first: " in done.stdout
    assert f"{path}:1: entry 4" in done.stdout


def test_an_unknown_split_lists_the_known_ones(programs, root, tmp_path):
    error = refused(programs, "vqa", root, tmp_path / "o", "--train", "trian", code=3)
    assert "'trian'" in error and "minival" in error


def test_an_empty_data_set_is_an_error(programs, root, tmp_path):
    rewrite(root / "vqa" / "train.json", "[]")
    assert "train.json" in refused(programs, "vqa", root, tmp_path / "o", "--train", "train", code=3)


def test_damaged_training_images_are_named_and_tolerated_up_to_a_share(programs, root, tmp_path):
    path = sorted((root / "mscoco" / "train2014").iterdir())[0]
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data[: len(data) // 2])
    error = refused(programs, "vqa", root, tmp_path / "strict", "--train", "train", code=3)
    assert path.name in error and "--max_damaged" in error
    more = ["--epochs", "1", "--data_root", str(root), "--output", str(tmp_path / "mild"), "--max_damaged", "0.1"]
    done = programs.run("vqa", *programs.ONE_STREAM, *programs.TINY, *more)
    assert done.stdout.count(f"warning: {path}") == 1


def test_a_damaged_image_is_an_error_in_evaluation(programs, root, tmp_path):
    for path in sorted((root / "mscoco" / "val2014").iterdir()):
        path.unlink()
        path.write_bytes(b"no image")
    error = refused(programs, "vqa", root, tmp_path / "o", "--train", "train", code=3)
    assert "evaluation needs every image" in error


def test_a_checkpoint_of_another_shape_is_refused_with_a_table(programs, root, tmp_path):
    common = ["--train", "train", "--valid", "", "--data_root", str(root), "--epochs", "1"]
    programs.run("vqa", *programs.ONE_STREAM, *programs.TINY, *common, "--output", str(tmp_path / "a"))
    shutil.copytree(root / "bert-base-uncased", tmp_path / "bert")
    config = json.loads((tmp_path / "bert" / "config.json").read_text()) | {"intermediate_size": 96}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config))
    load = ["--load", str(tmp_path / "a" / "LAST"), "--bert", str(tmp_path / "bert")]
    error = refused(programs, "vqa", root, tmp_path / "b", *load, code=2)
    assert "bert.encoder.layer.0.intermediate.dense.bias" in error and "(512,)" in error and "(96,)" in error


def test_a_pickle_that_runs_code_is_refused(programs, root, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'ran'}",)

    torch.save({"weight": Hostile()}, tmp_path / "bad.pth")
    error = refused(programs, "vqa", root, tmp_path / "o", "--load", str(tmp_path / "bad"), code=3)
    assert "bad.pth" in error and not (tmp_path / "ran").exists()
    (tmp_path / "raw.pth").write_bytes(pickle.dumps(Hostile()))
    refused(programs, "vqa", root, tmp_path / "o2", "--load", str(tmp_path / "raw"), code=3)
    assert not (tmp_path / "ran").exists()


def test_missing_weights_say_where_they_come_from(programs, root, tmp_path):
    error = refused(programs, "vqa", root, tmp_path / "o", "--no-random_init", code=2)
    assert "RN-tiny.pt" in error and "--clip_weights" in error and "--random_init" in error


def test_a_run_name_in_use_is_refused_and_kept(programs, root, tmp_path):
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "args.json").write_text(json.dumps({"program": "vqa", "flags": {}}))
    error = refused(programs, "vqa", root, tmp_path / "o", code=2)
    assert "--resume" in error and "--overwrite" in error


def test_a_folder_that_cannot_be_written_is_named(programs, root, tmp_path):
    (tmp_path / "file").write_text("")
    assert str(tmp_path / "file") in refused(programs, "vqa", root, tmp_path / "file" / "run", code=2)


def test_an_occupied_port_is_named(programs):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        done = subprocess.run(["bash", "scripts/pretrain.bash", "cpu", "name", port, "2"], cwd=programs.root,
                              capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and f"port {port} is in use" in done.stderr


def test_an_unknown_flag_ends_two_processes_with_one_sentence_and_its_code(programs):
    given = ["--logs", "ignored", "--bathc_size", "3"]  # --logs: published, and torchrun could take it for its own
    done = subprocess.run(["bash", "scripts/align.bash", "cpu", "name", "0", "2", *given],
                          cwd=programs.root, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("error: unknown flag --bathc_size; did you mean") == 1
    assert "ended with code 2: unknown flag --bathc_size" in done.stderr and "usage" not in done.stderr


def test_wrong_positionals_print_the_usage(programs):
    done = subprocess.run(
        ["bash", "scripts/pretrain.bash", "cpu", "name"], cwd=programs.root, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr.startswith("usage")


def test_a_dead_rank_ends_all_and_its_error_comes_first(programs, root, tmp_path):
    """Rank 1 alone meets a damaged image: the run ends with rank 1's sentence and its exit code."""
    for path in (root / "mscoco" / "val2014").iterdir():
        path.unlink()
        path.write_bytes(b"no image")
    given = [*programs.ONE_STREAM, *programs.TINY, "--epochs", "1", "--data_root", str(root), "--train", "train"]
    launcher = programs.launch("vqa", *given, "--output", str(tmp_path / "o"))
    lines = launcher.communicate(timeout=240)[0].strip().splitlines()
    assert launcher.returncode == 3
    assert "evaluation needs every image" in next(line for line in lines if line.startswith("rank "))
    assert lines[-1].startswith("vqa ended with code 3: rank ")


def test_a_dead_loader_worker_is_named(programs, root, tmp_path):
    given = [*programs.ONE_STREAM, *programs.TINY, "--epochs", "200", "--data_root", str(root), "--train", "train",
             "--num_workers", "1", "--valid", "", "--output", str(tmp_path / "o")]  # fmt: skip
    process = programs.start("vqa", *given)
    programs.wait_for_rows(tmp_path / "o", 2, process)
    while process.poll() is None:  # a worker that is killed when its epoch is over is not missed
        subprocess.run(["pkill", "-KILL", "-P", str(process.pid)])
        time.sleep(0.2)
    text = process.communicate(timeout=60)[0]
    assert process.returncode == 1 and "a loader worker died" in text and "Traceback" not in text
