"""A dual encoder's file says how it is read: moved away from its run it gives the same features."""

from dataclasses import dataclass, replace

import pytest
import torch

from clip_vl.datasets.images.crops import eval_crop
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import DataError
from clip_vl.flags.dual import ImageTowerFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.dual_training import (
    DualOptimFlags,
)
from clip_vl.flags.evaluation import EvaluationFlags
from clip_vl.flags.parser import parse
from clip_vl.models.dual.build import build_dual_encoder, open_dual_encoder
from clip_vl.models.dual.settings import BUILT_FROM, dual_settings, read_dual_settings
from clip_vl.models.dual.spec import LossNeeds, dual_spec, flags_of
from clip_vl.models.loading.clip_exchange import to_openclip
from clip_vl.models.loading.settings import as_record, read_settings
from clip_vl.models.towers.pixels import Pixels, describe

HALF = (0.5, 0.5, 0.5)
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "cat", "dog", "red"]


@dataclass
class Flags(EvaluationFlags, SharedTowerFlags, TextTowerFlags, ImageTowerFlags):
    pass


@dataclass
class AllFlags(Flags, DualOptimFlags):
    pass


def opened(path, *argv):
    """(flags, model) of an evaluation with --load, as from a command line."""
    args = parse(Flags, "", ["--load", str(path), *map(str, argv)])
    args = recalled(args)
    return args, open_dual_encoder(args.towers(), torch.device("cpu"))


@pytest.fixture
def trained(tmp_path):
    """(model, its file alone in a folder): ViT-tiny over 48 pixels with QuickGELU, SigLIP's statistics, squashed."""
    (tmp_path / "vocab").mkdir()
    (tmp_path / "vocab" / "vocab.txt").write_text("\n".join(WORDS))
    flags = Flags(image_model="ViT-tiny", text_model="ViT-tiny", image_resolution=48, image_crop="squash",
                  text_vocab=str(tmp_path / "vocab"), max_seq_length=5, force_quick_gelu=True)  # fmt: skip
    model = build_dual_encoder(flags.towers(), LossNeeds(scale=True)).eval()
    describe(model.image_tower, model.image_tower.width, Pixels(48, HALF, HALF, "bilinear", "short_side", 54))
    settings = dual_settings(vars(flags), model)
    save_plain(tmp_path / "epoch_1.pt", {"state_dict": model.state_dict()}, as_record(settings))
    (tmp_path / "vocab" / "vocab.txt").write_text("\n".join([*WORDS[:5], *WORDS[:4:-1]]))  # other words since then
    return model, tmp_path / "epoch_1.pt"


@torch.no_grad()
def test_the_file_alone_gives_the_features_of_training(trained):
    model, path = trained
    args, found = opened(path)
    tower = found.image_tower
    assert (tower.resolution, tower.mean, tower.std, tower.interpolation) == (48, HALF, HALF, "bilinear")
    crop = eval_crop(tower, args.image_crop)
    assert (crop.resolution, crop.crop, crop.short_side) == (48, "squash", 54)
    ids = found.tokenizer(["a red cat and a dog"])["input_ids"]
    assert ids.tolist() == [[2, 5, 8, 6, 3]]  # the words of training, cut to --max_seq_length 5
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(found.image_tower(images), model.image_tower(images))
    assert torch.equal(found.text_tower(ids), model.text_tower(ids))


def test_flags_that_contradict_the_file_count_and_are_said(trained, capsys):
    _, path = trained
    more = ["--image_crop", "pad", "--image_resolution", "64", "--no-force_quick_gelu", "--max_seq_length", "5"]
    args, found = opened(path, *more)
    assert eval_crop(found.image_tower, args.image_crop).crop == "pad" and found.image_tower.resolution == 64
    assert found.image_tower.short_side == 72 and found.quick_gelu.tolist() == [0, 0]
    said = capsys.readouterr().out
    for flag in ("image_crop pad", "image_resolution 64", "force_quick_gelu False"):
        assert f"--{flag} is given, but {path} was trained with" in said
    assert "max_seq_length" not in said and "9 cells resized to the 4 x 4" in said
    opened(path, "--text_vocab", path.parent / "vocab")
    assert "has other words than" in capsys.readouterr().out


@pytest.mark.parametrize("prefix", ["", "_orig_mod."])
def test_a_file_of_others_is_built_for_its_pixels_and_what_is_assumed_is_said(trained, tmp_path, capsys, prefix):
    """As `open_clip` writes it at another size, or from torch.compile; --image_resolution resizes the positions."""
    model, _ = trained
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "open_clip.pt"
    torch.save({"state_dict": {f"{prefix}{k}": v for k, v in to_openclip(model.state_dict()).items()}}, path)
    towers = ["--image_model", "ViT-tiny", "--text_model", "ViT-tiny", "--text_vocab", path.parents[1] / "vocab"]
    _, found = opened(path, *towers)
    said = capsys.readouterr().out
    assert found.image_tower.resolution == 48 and found.quick_gelu.tolist() == [0, 0]
    assert f"{path} holds no settings of its training; assumed: image_resolution 48, crop short_side" in said
    assert "activation gelu" in said
    assert opened(path, *towers, "--image_resolution", "32")[1].image_tower.resolution == 32


def test_settings_that_cannot_be_read_are_one_sentence(trained, tmp_path):
    model, path = trained
    for name, value in (("pixels", {"mean": 3}), ("vocabulary", [1, 2]), ("image_model", 5)):
        values = read_settings(path).values | {name: value}
        save_plain(tmp_path / "bad.pt", {"state_dict": model.state_dict()}, as_record(values))
        with pytest.raises(DataError, match="bad"):
            opened(tmp_path / "bad.pt")


@pytest.mark.parametrize("values", [
    {"image_resolution": 10**7}, {"pixels": {"resolution": 10**7}}, {"text_head_n_layers": 10**8},
    {"quick_gelu": [[1], 2]},
])  # fmt: skip
def test_settings_that_would_fill_the_memory_are_one_sentence(tmp_path, values):
    save_plain(tmp_path / "w.pt", {"w": torch.zeros(1)}, as_record(values))
    with pytest.raises(DataError, match=r"cannot be used; is it damaged\?"):
        read_dual_settings(tmp_path / "w.pt")


def test_a_flag_class_without_a_command_line_takes_the_settings_too(trained):
    args = recalled(Flags(load=str(trained[1])))
    assert args.image_model == "ViT-tiny" and args.max_seq_length == 5
    assert replace(args).image_crop == "squash"


def test_a_spec_has_the_names_and_defaults_of_the_flags():
    """Towers of the same command line and of the same settings are the same."""
    from clip_vl.align import AlignFlags

    args = AlignFlags()
    values = flags_of(dual_spec(vars(args)))
    assert values == {name: getattr(args, name) for name in values}
    assert set(BUILT_FROM) - {"image_crop"} <= values.keys() and flags_of(dual_spec({})) == values | {
        "cache_dir": None, "seed": 0}  # fmt: skip
    text = dual_spec(vars(AlignFlags(text_vocab="v", prompt=True, lock_text_model=True, text_head_n_layers=2))).text
    assert (text.vocab, text.prompt, text.locked, text.head_layers) == ("v", True, True, 2)


def test_flags_of_older_files_have_their_new_names(trained):
    model, path = trained
    values = read_settings(path).values | {"logit_scale": 0.05}
    save_plain(path, {"state_dict": model.state_dict()}, as_record(values))
    args = recalled(parse(AllFlags, "", ["--load", str(path)]))
    assert args.temperature == 0.05
