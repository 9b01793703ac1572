"""The four programs that judge image features on classes: perfect on separable ones, by chance on noise, resumable."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clip_vl.datasets.classes.sets import ClassSource, open_class_set
from clip_vl.engine.errors import DataError, Interrupted, UserError

PROGRAMS = ("zero_shot", "linear_probe", "knn", "clustering")
LEVELS = (20, 90, 170, 240)
TOWERS = ["--image_model", "RN-micro", "--image_resolution", "32", "--text_model", "ViT-tiny", "--image_head_n_layers",
          "1",
          "--text_head_n_layers", "1", "--joint_projection_dim", "32", "--batch_size", "16"]  # fmt: skip
SCORE = {"zero_shot": "accuracy", "linear_probe": "accuracy", "knn": "accuracy", "clustering": "AMI"}


def draw(root, counts, pixels_of):
    for split, count in counts.items():
        for label in range(4):
            (root / split / f"class_{label}").mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng([label, number, len(split)])
                Image.fromarray(pixels_of(label, rng)).save(root / split / f"class_{label}" / f"{number:02d}.png")


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Four classes of grey levels: any tower tells them apart."""
    root = tmp_path_factory.mktemp("plain")
    draw(root, {"train": 10, "test": 6}, lambda c, rng: (LEVELS[c] + rng.integers(-2, 3, (32, 32, 3))).astype(np.uint8))
    return root


@pytest.fixture(scope="module")
def noise(tmp_path_factory):
    """Four classes of which nothing can be seen."""
    root = tmp_path_factory.mktemp("noise")
    draw(root, {"train": 15, "test": 15}, lambda _, rng: rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
    return root


def run(programs, name, root, output, *more):
    flags = ["--dataset", root, "--datasets_dir", root, "--output", output, *TOWERS, *more]
    programs.run(name, *flags)
    return json.loads((output / "result.json").read_text())


@pytest.mark.parametrize("name", ("linear_probe", "knn", "clustering"))
def test_separable_images_are_told_apart(programs, plain, tmp_path, name):
    result = run(programs, name, plain, tmp_path / "out")
    assert result[SCORE[name]] == pytest.approx(100) and result[f"{SCORE[name]}_n"] == 24
    rows = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    assert len(rows) == 24 and all(row["correct"] for row in rows)
    assert rows[0]["id"] == "class_0/00.png" and rows[0]["label"] == rows[0]["prediction"] == "class 0"
    page = (tmp_path / "out" / "report.html").read_text()
    assert 'class="sheet confusion"' in page and "class 3" in page


@pytest.mark.parametrize("name", PROGRAMS)
def test_noise_is_judged_by_chance(programs, noise, tmp_path, name):
    """No leak from the split or from ties: 25 % of four classes, and clusters that agree with nothing."""
    result = run(programs, name, noise, tmp_path / "out")
    chance, tolerance = (25, 20) if name != "clustering" else (0, 10)
    assert abs(result[SCORE[name]] - chance) < tolerance
    assert result[f"{SCORE[name]}_low"] <= chance + tolerance / 2


def test_zero_shot_takes_the_class_whose_prompt_is_nearest(programs, plain, tmp_path, monkeypatch):
    """With text features equal to the mean image features of each class all is right, whatever the prompts."""
    import clip_vl.zero_shot as program

    original, open_sides, sides = program.prompt_features, program.open_sides, []

    def opened(args, device):
        sides.append(open_sides(args, device))
        return sides[-1]

    def planted(prompts, side, encoder, *more):
        images = open_class_set(ClassSource(str(plain)), "train")
        features = sides[-1][0].project(program.image_features(images, sides[-1][0], encoder))
        means = torch.stack([features[torch.from_numpy(images.labels == c)].mean(0) for c in range(4)])
        assert original(prompts, side, encoder, *more).shape == (4 * len(prompts.templates), 32)
        return means.repeat_interleave(len(prompts.templates), 0)

    monkeypatch.setattr(program, "prompt_features", planted)
    monkeypatch.setattr(program, "open_sides", opened)
    (tmp_path / "t.txt").write_text("a {}\nthe {c}\n")
    result = run(programs, "zero_shot", plain, tmp_path / "out", "--templates", tmp_path / "t.txt")
    assert result["accuracy"] == 100.0 and result["protocol"]["templates"] == 2


def files(folder):
    return {name: (folder / name).read_bytes() for name in ("samples.jsonl", "result.json", "gallery.json")}


def test_features_are_encoded_once_for_all_programs(programs, plain, tmp_path, monkeypatch):
    run(programs, "knn", plain, tmp_path / "one")
    import clip_vl.datasets.classes.class_set as class_set

    monkeypatch.setattr(class_set.ClassImages, "__getitem__", lambda *_: pytest.fail("an image was encoded again"))
    run(programs, "linear_probe", plain, tmp_path / "two", "--C", "1")
    run(programs, "clustering", plain, tmp_path / "three", "--image_head_n_layers", "0")
    assert run(programs, "knn", plain, tmp_path / "one")["accuracy"] == 100  # finished already


def test_an_interrupted_search_goes_on_and_ends_with_the_same_files(programs, plain, tmp_path, monkeypatch):
    import clip_vl.linear_probe as program

    run(programs, "linear_probe", plain, tmp_path / "whole")
    fits, original = [], program.fit

    def stopping(*args):
        fits.append(args[3])
        if len(fits) == 4:
            raise Interrupted("stop")
        return original(*args)

    monkeypatch.setattr(program, "fit", stopping)
    with pytest.raises(Interrupted):
        run(programs, "linear_probe", plain, tmp_path / "part")
    run(programs, "linear_probe", plain, tmp_path / "part")
    assert len(set(fits[:-1])) == len(fits) - 2  # the fourth alone was repeated, and the last is of the best C
    whole, part = files(tmp_path / "whole"), files(tmp_path / "part")
    assert whole["samples.jsonl"] == part["samples.jsonl"] and whole["gallery.json"] == part["gallery.json"]
    drop = ("inputs", "name")
    one, two = ({k: v for k, v in json.loads(each["result.json"]).items() if k not in drop} for each in (whole, part))
    assert one == two


def test_a_choice_on_the_test_split_has_a_name_of_its_own(programs, noise, tmp_path):
    result = run(programs, "linear_probe", noise, tmp_path / "out", "--compat_best_test")
    assert "accuracy" not in result and result["best_test_accuracy_n"] == 60
    assert (
        result["protocol"]["chosen_by"] == "test split (compat_best_test)" and len(result["protocol"]["search"]) == 11
    )
    assert result["best_test_accuracy"] == pytest.approx(max(result["protocol"]["search"].values()), abs=1e-3)


@pytest.mark.parametrize(
    "name, flags, error, sentence",
    [
        ("knn", ["--k", "41"], UserError, "--k 41 must be from 1 to 40, the number of training images"),
        ("knn", ["--temperature", "0"], UserError, "--temperature 0.0 must be above 0"),
        ("knn", ["--train_split", "none"], UserError, "no folder 'none' for the split; it has .*test, train"),
        ("linear_probe", ["--C", "1", "--compat_best_test"], UserError, "pass one of them"),
        ("linear_probe", ["--C", "-1"], UserError, "--C -1.0 must be above 0"),
        ("clustering", ["--clusters", "25"], UserError, "--clusters 25 must be from 2 to 24"),
        ("zero_shot", ["--metric", "auc"], UserError, "--metric auc needs two classes, and .* has 4"),
        ("zero_shot", ["--dataset", "nowhere"], UserError, "--dataset nowhere is neither a folder"),
        ("zero_shot", ["--classnames", "none.txt"], UserError, "none.txt cannot be read"),
    ],
)
def test_a_mistake_is_named(programs, plain, tmp_path, name, flags, error, sentence):
    with pytest.raises(error, match=sentence):
        run(programs, name, plain, tmp_path / "out", *flags)


def test_a_damaged_image_ends_the_evaluation(programs, plain, tmp_path):
    draw(tmp_path / "set", {"test": 2}, lambda *_: np.zeros((32, 32, 3), np.uint8))
    (tmp_path / "set" / "test" / "class_1" / "00.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"evaluation needs every image: .*class_1/00.png"):
        run(programs, "clustering", tmp_path / "set", tmp_path / "out")
