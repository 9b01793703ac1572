"""What --optim gives to the programs of the fused encoder: optimizer, decayed parameters, schedule."""

import importlib
from pathlib import Path

import pytest
from torch import nn

from clip_vl.engine.errors import UserError
from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags
from clip_vl.flags.parser import parse
from clip_vl.models.fused.optim import OptimSettings, build_optimizers

ROOT = Path(__file__).resolve().parents[3]
PROGRAMS = ["pretrain", "vqa", "gqa", "snli_ve", "nlvr2", "finetune_retrieval"]
CLASSES = {"hf_adamw": "BertAdam", "bert": "BertAdam", "adamw": "AdamW", "adam": "Adam", "adamax": "Adamax",
           "rms": "RMSprop", "sgd": "SGD"}  # fmt: skip


def model():
    parts = {"dense": nn.Linear(2, 2), "LayerNorm": nn.LayerNorm(2), "visual_model": nn.Linear(2, 2)}
    return nn.ModuleDict(parts)


def flags_of(program, *given):
    module = importlib.import_module(f"clip_vl.{program}")
    cls = next(v for k, v in vars(module).items() if k.endswith("Flags") and v.__module__ == module.__name__)
    return parse(cls, "doc", list(given))


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_has_the_published_optimizers_and_clip_vils_by_default(program):
    flags = flags_of(program)
    assert flags.optimizers() == OptimSettings(epochs=flags.epochs, lr=flags.lr)
    for name, kind in CLASSES.items():
        optimizer, _ = build_optimizers(model(), flags_of(program, "--optim", name).optimizers(), 10)["adam"]
        assert type(optimizer).__name__ == kind
        assert optimizer.defaults.get("correct_bias") == {"bert": False, "hf_adamw": True}.get(name)


def test_scripts_and_recipes_name_the_published_optimizer():
    """CLIP-ViL's runs were distributed, which meant transformers' AdamW; LXMERT's NLVR2 was BertAdam's."""
    scripts = [path for path in (ROOT / "scripts").rglob("*.bash") if "--optim" in path.read_text()]
    named = {path.stem: path.read_text().split("--optim ")[1].split()[0] for path in scripts}
    assert {"pretrain", "finetune_vqa", "pretrain_rn50_stage1", "vqa_rn50x4", "gqa_rn50x4"} <= set(named)
    assert {name for name, optim in named.items() if optim != "hf_adamw"} == {"nlvr2_rn50x4", "quickstart"}
    assert named["nlvr2_rn50x4"] == "bert"


@pytest.mark.parametrize("name", CLASSES)
def test_decay_and_schedule_are_those_of_the_published_runs(name):
    """BertAdam decayed everything, the AdamWs spared biases and LayerNorms; LXMERT's others had a constant rate."""
    network = model()
    optimizer, factor = build_optimizers(network, OptimSettings(optim=name, epochs=1, warmup_ratio=0.5), 10)["adam"]
    decays = {p: group.get("weight_decay", 0) for group in optimizer.param_groups for p in group["params"]}
    expected = {"bert": (0.01, 0.01, 0.01), "hf_adamw": (0.01, 0, 0), "adamw": (0.01, 0, 0)}.get(name, (0, 0, 0))
    assert (decays[network.dense.weight], decays[network.dense.bias], decays[network.LayerNorm.weight]) == expected
    warm = name in ("bert", "hf_adamw", "adamw")
    assert [factor(update) for update in (0, 4, 5, 10)] == ([0, 0.8, 1, 0] if warm else [1, 1, 1, 1])


def test_the_visual_tower_has_its_own_optimizer_when_asked():
    settings = {"milestones": (1,), "visual_lr": 0.1}
    optimizers = build_optimizers(model(), OptimSettings(visual="sgd", **settings), 10)
    optimizer, factor = optimizers["sgd"]
    assert type(optimizer).__name__ == "SGD" and sum(len(g["params"]) for g in optimizer.param_groups) == 2
    assert (factor(9), factor(10)) == (1, pytest.approx(0.1))
    assert sum(len(group["params"]) for group in optimizers["adam"][0].param_groups) == 4
    for name, bias_correction in (("hf_adamw", True), ("bert", False), ("sgd", True)):
        optimizer, _ = build_optimizers(model(), OptimSettings(name, visual="adam", **settings), 10)["sgd"]
        assert optimizer.defaults["correct_bias"] is bias_correction and optimizer.defaults["lr"] == 0.1


@pytest.mark.parametrize("given", ["-0.1", "1.5", "2000"])
def test_a_warm_up_that_is_no_share_of_the_run_is_refused(given):
    with pytest.raises(UserError, match=f"--warmup_ratio {given} is a share of the updates, from 0 to 1"):
        check_fused_flags(parse(FusedEncoderFlags, "doc", ["--warmup_ratio", given, "--visualbert_style"]))
