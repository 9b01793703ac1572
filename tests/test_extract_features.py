"""Stored features stand for the images: the same numbers, from any number of processes, after any interruption."""

import json
import signal

import numpy as np
import pytest
import torch

from clip_vl.datasets.features.hdf5_store import HDF5Writer
from clip_vl.datasets.features.lmdb_store import LMDBWriter
from clip_vl.datasets.features.store import open_features
from clip_vl.engine.errors import UserError
from clip_vl.models.clip.grid import GRID_ENCODERS
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.encoder import VLEncoder
from clip_vl.models.fused.visual_tokens import VisualTower
from clip_vl.models.loading.weights import load_weights

SIZES = ["--clip_model_name", "RN-tiny", "--image_size_min", "64", "--image_size_max", "96", "--no-bf16"]
BATCH = ["--batch_size", "4"]  # smaller or larger ones round differently


def extract(programs, shapes_root, output, *more, **how):
    flags = ["--data_root", str(shapes_root), "--output", str(output), "--random_init", *SIZES, *BATCH, *more]
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
    assert same(records(tmp_path / "two.lmdb"), records(stored))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.h5", "two.lmdb"]


def test_what_was_stored_is_not_computed_again(programs, shapes_root, stored, tmp_path):
    extract(programs, shapes_root, tmp_path / "grids.lmdb", "--max_images", "20")
    assert len(open_features(tmp_path / "grids.lmdb")) == 20
    done = extract(programs, shapes_root, tmp_path / "grids.lmdb")
    assert "of 88 images" in done.stdout
    assert records(tmp_path / "grids.lmdb").keys() == records(stored).keys()


def interrupted(programs, shapes_root, path, number, nproc=1):
    """Exit code of an extraction that gets a signal in the middle of its 88 records."""
    flags = ["--data_root", str(shapes_root), "--output", str(path), "--random_init", *SIZES, *BATCH]
    put = LMDBWriter.put if path.suffix == ".lmdb" else HDF5Writer.put
    return programs.interrupt("extract_features", *flags, number=number, after=30, of=put, nproc=nproc)[0]


@pytest.mark.parametrize("name", ["g.lmdb", "g.h5"])
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 75), (signal.SIGKILL, -9)])
def test_an_interrupted_extraction_ends_with_the_same_records(
    programs, shapes_root, stored, tmp_path, name, number, code
):
    assert interrupted(programs, shapes_root, tmp_path / name, number) == code
    extract(programs, shapes_root, tmp_path / name)
    assert same(records(tmp_path / name), records(stored))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_two_killed_processes_end_with_the_same_records_and_no_shards(programs, shapes_root, stored, tmp_path):
    assert interrupted(programs, shapes_root, tmp_path / "g.lmdb", signal.SIGKILL, nproc=2) == -9
    with pytest.raises(UserError, match="a run with 2 processes: let 2 finish it"):
        extract(programs, shapes_root, tmp_path / "g.lmdb")
    extract(programs, shapes_root, tmp_path / "g.lmdb", nproc=2)
    assert same(records(tmp_path / "g.lmdb"), records(stored))
    assert [path.name for path in tmp_path.iterdir()] == ["g.lmdb"]


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


@torch.no_grad()
@pytest.mark.parametrize("layers", [{}, {"cross_layers": 1, "visual_layers": 1}], ids=["one stream", "two streams"])
def test_a_frozen_towers_states_are_the_same_from_pixels_and_from_half_precision(layers):
    torch.manual_seed(0)
    config = BertConfig(vocab_size=60, hidden_size=48, num_attention_heads=4, intermediate_size=96)
    options = {"num_layers": 2, "positional_embedding": True, "max_pooling": True} | layers
    pixels = VLEncoder(config, GRID_ENCODERS["RN-tiny"], bn_mode="frozen", **options).eval()
    stored = VLEncoder(config, GRID_ENCODERS["RN-tiny"], stored_features=True, **options).eval()
    load_weights(stored, pixels.state_dict())
    images = torch.randint(0, 256, (2, 3, 128, 192), dtype=torch.uint8)
    grids = pixels.encoder.visual_model(images).half()
    ids, mask = torch.randint(1, 60, (2, 7)), torch.ones(2, 7, dtype=torch.long)
    for ours, theirs in zip(stored(grids, ids, mask), pixels(images, ids, mask)):
        assert torch.allclose(ours, theirs, atol=2e-3) and not torch.equal(ours, theirs)


def test_training_from_features_builds_no_tower(programs, shapes_root, stored, tmp_path):
    more = ["--features", str(stored), "--epochs", "1", "--mask_padding", "--sub_sampling", "--sub_feat_num", "3"]
    flags = [*programs.PRETRAIN, *programs.TINY, "--data_root", str(shapes_root), "--output", str(tmp_path / "p")]
    programs.run("pretrain", *flags, *more)
    state = torch.load(tmp_path / "p" / "Epoch01_LXRT.pth", weights_only=True)
    assert not any("visual_model" in name for name in state) and any("visual_pos" in name for name in state)


def test_checkpoints_with_and_without_a_tower_go_either_way(programs, shapes_root, stored, tmp_path):
    def vqa(name, *more):
        flags = model_flags(programs, shapes_root, tmp_path / name, "--epochs", "1", "--valid", "", *more)
        return programs.run("vqa", *flags).stdout

    flags = [*programs.PRETRAIN, *programs.TINY, "--taskQA", "--valid", "", "--data_root", str(shapes_root)]
    programs.run("pretrain", *flags, "--epochs", "1", "--output", str(tmp_path / "pre"))
    features = ["--features", str(stored)]
    assert "answers found" in vqa("a", *features, "--loadLXMERTQA", tmp_path / "pre" / "Epoch01")
    names = torch.load(tmp_path / "a" / "LAST.pth", weights_only=True)
    assert not any("visual_model" in name for name in names)
    vqa("b", *features, "--load", tmp_path / "a" / "LAST")  # without a tower, from features

    with pytest.raises(UserError, match=r"LAST.pth has no visual tower: pass the --features it was trained from"):
        vqa("c", "--load", tmp_path / "a" / "LAST")
    with pytest.raises(UserError, match="has no visual tower to extract with"):
        extract(programs, shapes_root, tmp_path / "x.lmdb", "--load", str(tmp_path / "a" / "LAST"))


def test_pixels_take_clips_tower_where_the_checkpoint_has_none(programs, shapes_root, stored, tmp_path):
    """The tower that the features came from makes the same answers of pixels."""
    tower = VisualTower(GRID_ENCODERS["RN-tiny"], bn_mode="frozen")
    torch.save(tower.state_dict(), tmp_path / "tower.pt")
    weights = ["--clip_weights", str(tmp_path / "tower.pt"), "--no-random_init"]
    extract(programs, shapes_root, tmp_path / "f.lmdb", *weights)
    features = ["--features", str(tmp_path / "f.lmdb")]
    programs.run("vqa", *model_flags(programs, shapes_root, tmp_path / "vqa", "--epochs", "1", *features))
    answers = {}
    for name, more in (("features", features), ("pixels", weights)):
        more = ["--load", str(tmp_path / "vqa" / "BEST"), "--test", "minival", *more]
        programs.run("vqa", *model_flags(programs, shapes_root, tmp_path / name, *more))
        answers[name] = (tmp_path / name / "minival_predict.json").read_text()
    assert answers["pixels"] == answers["features"]


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
