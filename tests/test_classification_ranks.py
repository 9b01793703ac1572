"""On three processes, each with a share of the images, the programs of image classification write the bytes of one."""

import importlib
import os

import numpy as np
import pytest
from PIL import Image

from clip_vl import clustering, knn, linear_probe, zero_shot  # noqa: F401 - before the processes fork
from clip_vl.encoding import classes as classes_features
from clip_vl.flags.parser import parse

FLAGS = ["--dataset", "../pictures", "--datasets_dir", ".", "--image_model", "RN-micro", "--image_resolution", "32",
         "--text_model", "RN-micro", "--text_vocab", "../pictures", "--batch_size", "3"]  # fmt: skip
MORE = {"zero_shot": [], "linear_probe": ["--C", "1"], "knn": ["--k", "5"], "clustering": []}


def case(folder):
    """Run all programs in `folder`/W, where paths are the same words whatever W is; seven blocks, dealt out."""
    folder = folder / os.environ["WORLD_SIZE"]
    folder.mkdir(exist_ok=True)
    os.chdir(folder)
    classes_features.BLOCK = 4
    for name, more in MORE.items():
        program = importlib.import_module(f"clip_vl.{name}")
        flags = next(v for k, v in vars(program).items() if k.endswith("Flags") and v.__module__ == program.__name__)
        program.main(parse(flags, program.__doc__, [*FLAGS, *more, "--output", f"out/{name}"]))


@pytest.fixture(scope="module")
def folder(programs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    rng = np.random.default_rng(0)
    for split, count in {"train": 5, "test": 7}.items():
        for label in range(4):
            (folder / "pictures" / split / f"class_{label}").mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120 + 40 * label, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "pictures" / split / f"class_{label}" / f"{number}.png")
    (folder / "pictures/vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nclass\n0\n1\n2\n3\na\nphoto\nof\n")
    programs.cases(__file__, folder, 1, 3)
    return folder


@pytest.mark.parametrize("name", MORE)
def test_three_processes_write_the_bytes_of_one(folder, name):
    for file in ("samples.jsonl", "result.json", "gallery.json"):
        one, three = ((folder / str(W) / "out" / name / file).read_bytes() for W in (1, 3))
        assert one == three and len(one) > 100, file
