"""Image classification as a user runs it, on folders of four colours with a small encoder."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.engine.errors import UserError
from clip_vl.models.distill.image_encoder import ImageEncoderSpec, init_image_encoder
from clip_vl.models.distill.student import Student, StudentSpec
from clip_vl.models.fused.bert import BertConfig

COLOURS = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1), "white": (1, 1, 1)}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """train/ and val/ with a folder per colour, and a student's checkpoint."""
    root, rng = tmp_path_factory.mktemp("imagenet"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4)):
        for name, tint in COLOURS.items():
            (root / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(0, 60, (24, 32, 3)) + 190 * np.array(tint)
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{i}.png")
    torch.manual_seed(0)
    image = ImageEncoderSpec(blocks=2, width=24, heads=2, hidden=48, patch=8, resolution=16)
    text = BertConfig(vocab_size=9, hidden_size=24, num_hidden_layers=1, num_attention_heads=2, intermediate_size=48)
    student = Student(StudentSpec(image, text))
    init_image_encoder(student.image_model)
    torch.save({"state_dict": {f"model.{n}": t for n, t in student.state_dict().items()}}, root / "epoch_1.pt")
    return root


def run(programs, root, output, *more):
    given = ["--dataset", root, "--load", root / "epoch_1.pt", "--heads", "2", "--output", output, "--batch_size", "8",
             "--no-bf16", "--report_step", "2", "--datasets_dir", root, "--epochs", "3"]  # fmt: skip
    programs.run_here("imagenet", *given, *more)
    return json.loads((output / "result.json").read_text())


def test_four_colours_are_learned_and_the_files_are_there(programs, root, tmp_path):
    result = run(programs, root, tmp_path / "run", "--probe_aug", "light", "--lr", "1e-2", "--epochs", "6")
    assert result["accuracy"] > 60 and result["accuracy_n"] == 16
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"BEST.pth", "args.json", "log.jsonl", "gallery.json", "report.html", "checkpoints"} <= names


def test_linear_evaluation_leaves_the_encoder_as_it_was(programs, root, tmp_path):
    run(programs, root, tmp_path / "run", "--linear_eval", "--epochs", "1", "--compat_mean_loss")
    best, start = (torch.load(path, weights_only=True) for path in (tmp_path / "run" / "BEST.pth", root / "epoch_1.pt"))
    for name, tensor in start["state_dict"].items():
        if name.startswith("model.image_model."):
            assert torch.equal(best[name.replace("model.image_model.", "encoder.")], tensor), name


def test_a_run_without_an_encoder_is_refused(programs, root, tmp_path):
    with pytest.raises(UserError, match="--load names a checkpoint"):
        programs.run_here("imagenet", "--dataset", root, "--output", tmp_path / "run")


def test_augmented_views_depend_on_seed_epoch_and_row_alone(root):
    from clip_vl.datasets.classes.class_set import ClassSet, FolderReader
    from clip_vl.datasets.images.augment import AugmentedImages, erase

    ids = [f"red/{i}.png" for i in range(4)]
    images = ClassSet("train", ids, FolderReader(root / "train"), [0] * 4, ["red"], "")
    samples = AugmentedImages(images, 16, seed=1)
    one, two = samples[(0, np.array([1, 2]))], samples[(0, np.array([2, 1]))]
    assert torch.equal(one["images"], two["images"].flip(0))
    assert not torch.equal(one["images"], samples[(1, np.array([1, 2]))]["images"])
    erased = erase(torch.zeros(200, 3, 16, 16), np.random.default_rng(0), 0.25)
    share = (erased.abs().sum((1, 2, 3)) > 0).float().mean()
    assert 0.15 < share < 0.35
