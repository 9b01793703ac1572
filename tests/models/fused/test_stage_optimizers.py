"""Optimizer files of published pre-training checkpoints: taken over by name, or refused with the reason."""

import re
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.optim import Updater
from clip_vl.engine.optimizers import build_optimizer
from clip_vl.models.fused.checkpoints import save_stage
from clip_vl.models.fused.optim import OptimSettings, build_optimizers
from clip_vl.models.fused.stage_optimizers import load_stage_optimizers


def tree(**parts):
    return nn.ModuleDict(parts)


def ours(answers=0):
    """The parts of a pre-training model under their names, in this repository's order."""
    visual = tree(visual=tree(conv1=nn.Conv2d(3, 2, 3), bn1=nn.BatchNorm2d(2)))
    encoder = tree(layer=nn.ModuleList([nn.Linear(4, 4)]), visn_fc=tree(visn_fc=nn.Linear(4, 4)), visual_model=visual)
    heads = {"answer_head": nn.Linear(4, answers)} if answers else {}
    model = tree(bert=tree(encoder=encoder, LayerNorm=nn.LayerNorm(4)), **heads)
    return model.to(memory_format=torch.channels_last)


def original():
    """The same model as published: another order, box layers, and CLIP's unused text tower."""
    visn = tree(visn_fc=nn.Linear(4, 4), box_fc=nn.Linear(4, 4))
    visual = tree(visual=tree(conv1=nn.Conv2d(3, 2, 3), bn1=nn.BatchNorm2d(2)), transformer=nn.Linear(4, 4))
    encoder = tree(visn_fc=visn, layer=nn.ModuleList([nn.Linear(4, 4)]), visual_model=visual)
    return tree(bert=tree(LayerNorm=nn.LayerNorm(4), encoder=encoder))


def published_groups(model, visual=None):
    """As in the original's code: decayed parameters, then biases and LayerNorms; all, or (not) the visual tower."""
    named = [(n, p) for n, p in model.named_parameters() if visual is None or ("visual_model" in n) == visual]
    spared = ("bias", "LayerNorm.weight")
    return [[p for n, p in named if any(word in n for word in spared) == kept] for kept in (False, True)]


def stamp(optimizer, model, *keys):
    """Moments that tell each parameter by its name's length and key, for those the published model used."""
    for name, parameter in model.named_parameters():
        if "transformer" not in name and "box_fc" not in name:
            moments = {key: torch.full_like(parameter, len(name) + i) for i, key in enumerate(keys)}
            moments[keys[0]].view(-1)[0] = 0.5  # and its order in memory
            optimizer.state[parameter] = {"step": 7} | moments


def write(tmp_path, model, state):
    """A published checkpoint's weights and Adam file; returns its stem."""
    torch.save({f"module.{name}": tensor for name, tensor in model.state_dict().items()}, tmp_path / "Epoch01_LXRT.pth")
    torch.save(state, tmp_path / "Epoch01_LXRT_AdamOptim.pth")
    return tmp_path / "Epoch01"


def updater_of(model, **settings):
    return Updater(model, build_optimizers(model, OptimSettings(**settings), 10), device=torch.device("cpu"))


def load(stem, model, **settings):
    optimizers = build_optimizers(model, OptimSettings(**settings), 10)
    first = load_stage_optimizers(stem, model, optimizers, skip_adam=False, skip_scheduler=False)
    updater = Updater(model, optimizers, device=torch.device("cpu"))
    updater.update = first
    return updater


@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("optim", ["hf_adamw", "bert", "adamw"])
def test_moments_of_a_published_file_find_their_parameters_by_name(tmp_path, separate, optim):
    """transformers' AdamW, over everything or beside an SGD of the visual tower."""
    theirs, model = original(), ours()
    groups = [{"params": group} for group in published_groups(theirs, False if separate else None)]
    optimizer = build_optimizer("hf_adamw", groups, 0.5)
    stamp(optimizer, theirs, "exp_avg", "exp_avg_sq")
    optimizer.state = {p: s for p, s in optimizer.state.items() if any(p is q for g in groups for q in g["params"])}
    stem = write(tmp_path, theirs, optimizer.state_dict())
    adam = load(stem, model, optim=optim, visual="sgd" if separate else None).optimizers["adam"]
    assert len(adam.state) == (6 if separate else 10) and adam.param_groups[0]["lr"] == 1e-4
    for name, parameter in model.named_parameters():
        if parameter in adam.state:
            state = adam.state[parameter]
            assert int(state["step"]) == 7 and state["exp_avg"].stride() == parameter.stride()
            assert state["exp_avg"][(0,) * parameter.dim()] == 0.5
            assert state["exp_avg"].flatten()[-1] == len(name) and state["exp_avg_sq"].unique() == len(name) + 1


def test_lxmerts_bert_adam_calls_its_moments_by_other_names(tmp_path):
    theirs, model = original(), ours()
    optimizer = build_optimizer("sgd", list(theirs.parameters()), 0.5)
    stamp(optimizer, theirs, "next_m", "next_v")
    state = load(write(tmp_path, theirs, optimizer.state_dict()), model, optim="bert").optimizers["adam"].state
    assert state[model.bert.LayerNorm.bias]["exp_avg"].tolist() == [0.5] + [len("bert.LayerNorm.bias")] * 3


@pytest.mark.parametrize("optim", ["hf_adamw", "bert", "adamw", "adam", "adamax", "rms", "sgd"])
def test_our_own_files_bring_back_optimizer_and_schedule(tmp_path, optim):
    torch.manual_seed(0)
    model = ours()
    updater = updater_of(model, optim=optim, visual="sgd", visual_momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    updater._apply()
    model.bert.pooler = SimpleNamespace(tanh=False)
    save_stage(tmp_path / "Epoch01", model, updater, {})
    again = load(tmp_path / "Epoch01", model, optim=optim, visual="sgd", visual_momentum=0.9)
    assert again.update == 1
    for role, optimizer in updater.optimizers.items():
        for parameter, state in optimizer.state.items():
            other = again.optimizers[role].state[parameter]
            assert all(torch.equal(*map(torch.as_tensor, (value, other[key]))) for key, value in state.items())


def test_what_cannot_be_taken_over_is_refused_with_the_reason(tmp_path):
    theirs = original()
    optimizer = build_optimizer("adamax", list(theirs.parameters()), 0.5)
    stamp(optimizer, theirs, "exp_avg", "exp_inf")
    stem = write(tmp_path, theirs, optimizer.state_dict())
    hint = "pass --not_load_adam_optimizer to start the optimizer anew"
    with pytest.raises(UserError, match=f"holds exp_avg, exp_inf of .*, where the BertAdam .* exp_avg_sq; {hint}"):
        load(stem, ours())
    with pytest.raises(UserError, match=f"has no state for 2 of the parameters, such as answer_head.weight; {hint}"):
        load(stem, ours(answers=3), optim="adamax")
    write(tmp_path, tree(bert=tree(LayerNorm=nn.LayerNorm(4))), optimizer.state_dict())
    with pytest.raises(UserError, match=re.escape(f"counts [14] parameters, which are not those of {stem}_LXRT.pth")):
        load(stem, ours(), optim="adamax")
    for state in ({"a": 1}, [1], {"state": {99: {"exp_avg": 1}}, "param_groups": [{"params": [0]}]}):
        write(tmp_path, theirs, state)
        with pytest.raises(DataError, match=r"AdamOptim\.pth"):
            load(stem, ours())


def test_moments_of_another_shape_are_refused(tmp_path):
    theirs = original()
    optimizer = build_optimizer("hf_adamw", list(theirs.parameters()), 0.5)
    stamp(optimizer, theirs, "exp_avg", "exp_avg_sq")
    state = optimizer.state_dict()
    for entry in state["state"].values():
        entry["exp_avg"] = torch.zeros(3)
    with pytest.raises(UserError, match=r"holds an exp_avg of .* that is \(3,\), where the parameter is \(4,"):
        load(write(tmp_path, theirs, state), ours())
