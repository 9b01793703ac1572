"""Pre-training and VQA from a detector's regions as a user runs them, on the regions of the built-in data."""

import json
import shutil
import signal

import lmdb
import pytest
import torch

from clip_vl.datasets.features.regions import open_regions
from clip_vl.engine.checkpoint import load_latest
from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.loading.state_dicts import read_state_dict

TWO = ["--no-visualbert_style", "--llayers", "1", "--xlayers", "1", "--rlayers", "1", "--random_init", "--region_dim",
       "256", "--batchSize", "8", "--sentences_per_image", "2", "--report_step", "3", "--no-bf16",
       "--max_train_samples", "64", "--max_eval_samples", "24"]  # fmt: skip
TASKS = ["--taskMaskLM", "--taskMatched", "--taskQA", "--taskObjPredict", "--objMaskRate", "0.15"]


def flags(shapes_root, output, *more, features=None):
    features = features or shapes_root / "features" / "regions.lmdb"
    return [*TWO, "--data_root", shapes_root, "--features", features, "--output", output, *more]


def test_the_drawn_regions_are_those_of_the_scenes(shapes_root):
    lines = [line for path in (shapes_root / "scenes").glob("*mini*") for line in path.read_text().splitlines()]
    scene = json.loads(lines[3])
    record = open_regions(shapes_root / "features" / "regions.lmdb").load(scene["img_id"])
    assert [thing["box"] for thing in scene["objects"]] == [
        [round(v, 1) for v in box] for box in record["boxes"].tolist()
    ]
    sizes = json.loads((shapes_root / "mscoco" / "width_heigths.json").read_text())
    assert len(open_regions(shapes_root / "features" / "regions.lmdb")) == len(sizes)


@pytest.fixture(scope="module")
def pretrained(programs, shapes_root, tmp_path_factory):
    output = tmp_path_factory.mktemp("regions") / "pre"
    programs.run("pretrain", *flags(shapes_root, output, *TASKS, "--epochs", "2", "--checkpoint_steps", "3"))
    return output


def test_every_loss_of_the_regions_is_in_the_log_and_the_result(pretrained, programs):
    rows = [json.loads(line) for line in programs.log_rows(pretrained)]
    names = {"loss_obj", "loss_attr", "loss_feat", "loss_qa", "loss_mlm", "loss_itm"}
    assert names <= rows[0].keys() and names <= json.loads((pretrained / "result.json").read_text()).keys()
    assert rows[0]["loss_obj"] == pytest.approx(49.2, rel=0.2)  # log(1600) / 0.15: nothing is known yet
    parts = [value for name, value in rows[0].items() if name.startswith("loss_")]
    assert rows[0]["loss"] == pytest.approx(sum(parts))
    names = read_state_dict(pretrained / "Epoch02_LXRT.pth")
    assert "bert.encoder.visn_fc.box_fc.weight" in names and "obj_predict_head.decoder_dict.attr.weight" in names


def test_a_killed_run_from_regions_resumes_to_the_same_bits(programs, shapes_root, pretrained, tmp_path):
    run = flags(shapes_root, tmp_path / "run", *TASKS, "--epochs", "2", "--checkpoint_steps", "3", "--resume")
    code, text = programs.interrupt("pretrain", *run, number=signal.SIGKILL, after=4)
    assert code == -signal.SIGKILL, text
    programs.run("pretrain", *run, "--num_workers", "2")
    (_, whole, a), (_, broken, b) = (load_latest(f / "checkpoints") for f in (pretrained, tmp_path / "run"))
    assert all(torch.equal(flat[name], broken[stem][name]) for stem, flat in whole.items() for name in flat)
    assert a["updater"] == b["updater"]


def test_vqa_goes_on_from_there_and_answers_minival(programs, shapes_root, pretrained, tmp_path):
    start = ["--loadLXMERTQA", pretrained / "Epoch02", "--epochs", "1"]
    done = programs.run("vqa", *flags(shapes_root, tmp_path / "vqa", *start), nproc=2)
    assert "answers found" in done.stdout
    one = programs.run(
        "vqa", *flags(shapes_root, tmp_path / "t", "--load", tmp_path / "vqa" / "BEST", "--test", "minival")
    )
    result = json.loads((tmp_path / "vqa" / "result.json").read_text())
    assert f"minival: {result['accuracy'] / 100:.4f}" in one.stdout


def test_a_damaged_record_is_named_and_not_used(programs, shapes_root, pretrained, tmp_path):
    store = tmp_path / "regions.lmdb"
    shutil.copytree(shapes_root / "features" / "regions.lmdb", store)
    bad = json.loads((shapes_root / "vqa" / "train.json").read_text())[0]["img_id"]
    with lmdb.open(str(store), map_size=2**28) as environment, environment.begin(write=True) as transaction:
        value = bytearray(transaction.get(bad.encode()))
        value[-20] ^= 1
        transaction.put(bad.encode(), bytes(value))
    more = ["--epochs", "1", "--train", "train", "--valid", ""]
    done = programs.run("vqa", *flags(shapes_root, tmp_path / "a", *more, "--max_damaged", "0.1", features=store))
    assert f"regions.lmdb/{bad}: does not have the content that was written" in done.stdout
    with pytest.raises(DataError, match=f"1 of .* --max_damaged 0.001 allows.*{bad}"):
        programs.run("vqa", *flags(shapes_root, tmp_path / "b", *more, features=store))


@pytest.mark.parametrize(
    "more, sentence",
    [
        (["--region_dim", "2048"], "pass --region_dim 256"),
        (["--visualLosses", "obj,size"], "--visualLosses size is not among obj, attr, feat"),
        (["--mask_padding"], "--mask_padding is about grid cells"),
        (["--loadLXMERTQA", "x"], "--loadLXMERTQA starts a fine-tuning"),
        (["--input_raw_images"], "pass --no-input_raw_images"),
    ],
)
def test_flags_that_regions_cannot_follow_are_refused(programs, shapes_root, tmp_path, more, sentence):
    with pytest.raises(UserError, match=sentence):
        programs.run("pretrain", *flags(shapes_root, tmp_path / "x", *TASKS, *more))


def test_a_store_of_regions_is_no_store_of_grids(programs, shapes_root, tmp_path):
    with pytest.raises(UserError, match="kind regions and not grid"):
        programs.run("vqa", *flags(shapes_root, tmp_path / "x", "--input_raw_images"))
