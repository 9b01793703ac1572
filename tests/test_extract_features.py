"""Stored features stand for the images: the same numbers, from any number of processes, after any interruption."""

import json
import signal
import time

import numpy as np
import pytest
import torch

from clip_vl.datasets.feature_store import open_features
from clip_vl.engine.errors import UserError

SIZES = ["--clip_model_name", "RN-tiny", "--image_size_min", "64", "--image_size_max", "96", "--no-bf16"]


def extract(programs, shapes_root, output, *more, **how):
    flags = ["--data_root", str(shapes_root), "--output", str(output), "--random_init", *SIZES, *more]
    return programs.run("extract_features", *flags, **how)


@pytest.fixture(scope="module")
def stored(programs, shapes_root, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "grids.lmdb"
    extract(programs, shapes_root, path)
    return path


def records(path):
    store = open_features(path)
    return {img_id: store.load(img_id) for img_id in store.keys()}


def same(a, b):
    return a.keys() == b.keys() and all(np.array_equal(a[k]["grid"], b[k]["grid"]) for k in a)


def test_every_listed_image_is_there_on_its_canvas(stored, shapes_root):
    sizes = json.loads((shapes_root / "mscoco" / "width_heigths.json").read_text())
    found = records(stored)
    assert found.keys() == {key.rsplit("/")[-1].removesuffix(".jpg") for key in sizes}
    assert {record["grid"].shape[1:] for record in found.values()} == {(2, 3), (3, 2)}
    assert open_features(stored).meta["complete"]


def test_two_processes_and_hdf5_hold_the_same(programs, shapes_root, stored, tmp_path):
    extract(programs, shapes_root, tmp_path / "two.lmdb", nproc=2)
    extract(programs, shapes_root, tmp_path / "one.h5")
    assert same(records(tmp_path / "one.h5"), records(stored))
    two, one = records(tmp_path / "two.lmdb"), records(stored)
    assert two.keys() == one.keys() and all(np.allclose(two[k]["grid"], one[k]["grid"], atol=2e-3) for k in one)
    assert [path.name for path in tmp_path.iterdir() if "of-2" in path.name] == []


def test_what_was_stored_is_not_computed_again(programs, shapes_root, stored, tmp_path):
    extract(programs, shapes_root, tmp_path / "grids.lmdb", "--max_images", "20")
    assert len(open_features(tmp_path / "grids.lmdb")) == 20
    done = extract(programs, shapes_root, tmp_path / "grids.lmdb")
    assert "of 88 images" in done.stdout
    assert records(tmp_path / "grids.lmdb").keys() == records(stored).keys()


@pytest.mark.parametrize("number, codes", [(signal.SIGTERM, (75, 0)), (signal.SIGKILL, (-9, 0))])
def test_an_interrupted_extraction_goes_on(programs, shapes_root, stored, tmp_path, number, codes):
    path = tmp_path / "g.lmdb"
    flags = ["--data_root", str(shapes_root), "--output", str(path), "--random_init", *SIZES]
    process = programs.start("extract_features", *flags, "--batch_size", "1")
    while process.poll() is None and not path.exists():
        time.sleep(0.01)
    time.sleep(0.1)
    process.send_signal(number)
    assert process.wait(60) in codes
    extract(programs, shapes_root, path)
    assert records(path).keys() == records(stored).keys()
    assert all(
        np.allclose(record["grid"], records(stored)[k]["grid"], atol=2e-3) for k, record in records(path).items()
    )


def test_a_store_is_never_filled_from_two_towers(programs, shapes_root, stored):
    with pytest.raises(UserError, match="weights"):
        extract(programs, shapes_root, stored, "--seed", "1")


def model_flags(programs, shapes_root, output, *more):
    flags = [*programs.ONE_STREAM, *programs.TINY, "--data_root", str(shapes_root), "--output", str(output)]
    return [*flags, "--bn_mode", "frozen", *more]


def test_a_model_answers_from_its_stored_features_as_from_pixels(programs, shapes_root, tmp_path):
    programs.run("vqa", *model_flags(programs, shapes_root, tmp_path / "tuned", "--epochs", "1", "--freeze_clip"))
    best = str(tmp_path / "tuned" / "BEST")
    extract(programs, shapes_root, tmp_path / "f.h5", "--load", best)
    answers = {}
    for name, more in (("pixels", []), ("features", ["--features", str(tmp_path / "f.h5")])):
        flags = model_flags(programs, shapes_root, tmp_path / name, "--load", best, "--test", "minival", *more)
        programs.run("vqa", *flags)
        answers[name] = json.loads((tmp_path / name / "minival_predict.json").read_text())
    assert answers["pixels"] == answers["features"]


def test_training_from_features_builds_no_tower(programs, shapes_root, stored, tmp_path):
    more = ["--features", str(stored), "--epochs", "1", "--mask_padding", "--sub_sampling", "--sub_feat_num", "3"]
    flags = [*programs.PRETRAIN, *programs.TINY, "--data_root", str(shapes_root), "--output", str(tmp_path / "p")]
    programs.run("pretrain", *flags, *more)
    state = torch.load(tmp_path / "p" / "Epoch01_LXRT.pth", weights_only=True)
    assert not any("visual_model" in name for name in state) and any("visual_pos" in name for name in state)


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--clip_model_name", "RN50"], "clip_model_name RN-tiny and not RN50"),
        (["--image_size_max", "128"], "image_size_max 96 and not 128"),
        (["--dynamic_padding"], "--dynamic_padding is about pixels"),
    ],
)
def test_features_of_something_else_are_refused(programs, shapes_root, stored, tmp_path, more, sentence):
    flags = model_flags(programs, shapes_root, tmp_path / "x", "--features", str(stored), *more)
    with pytest.raises(UserError, match=sentence):
        programs.run("vqa", *flags)
