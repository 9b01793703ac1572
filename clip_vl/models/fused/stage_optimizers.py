"""Optimizer states of pre-training checkpoints, ours and the published ones, by the names of the weights beside them.

A torch optimizer numbers its parameters. Published files count parts that are not built here (the attention pool and
text tower of CLIP, the box layers of grids), so a number means a parameter of `<stem>_LXRT.pth`, in its order there.
"""

from pathlib import Path

import torch

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.optim import is_decayed
from clip_vl.models.fused.checkpoints import OPTIMIZER_FILES, SCHEDULER_FILE, read_checkpoint
from clip_vl.models.fused.optim import VISUAL
from clip_vl.models.loading.torch_files import read_torch

NOT_TRAINED = ("running_mean", "running_var", "num_batches_tracked", "position_ids", "cls.predictions.decoder.weight")
STATE_KEYS = {"Adamax": ("exp_avg", "exp_inf"), "RMSprop": ("square_avg",), "SGD": ("momentum_buffer",)}
OURS = {"next_m": "exp_avg", "next_v": "exp_avg_sq"}  # BertAdam's names


def load_stage_optimizers(stem, model, optimizers, skip_adam, skip_scheduler):
    """Take over optimizer states of a pre-training checkpoint, where its files are there -> the update to go on from.

    optimizers: {name: (optimizer, factor)}; their rates, decays and betas stay: they follow this run's flags
    """
    names_of = {parameter: name for name, parameter in model.named_parameters()}
    for role, (optimizer, _) in optimizers.items():
        path = Path(f"{stem}{OPTIMIZER_FILES[role]}")
        if path.is_file() and not (role == "adam" and skip_adam):
            _take_over(optimizer, names_of, path, stem)
    path = Path(f"{stem}{SCHEDULER_FILE}")
    if not path.is_file() or skip_scheduler:
        return 0
    state = read_torch(path)
    if not isinstance(state, dict) or type(state.get("last_epoch")) is not int:
        raise DataError(f"{path} holds no last_epoch, the number of updates; remove the file to start from 0")
    return state["last_epoch"]


def _take_over(optimizer, names_of, path, stem):
    entries, sizes = read_optimizer(path)
    if not entries:
        return  # SGD without momentum has none
    weights, weights_path = read_checkpoint(stem)
    names = parameter_names(list(weights), sizes)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    try:
        if names is None:
            raise UserError(f"counts {sizes} parameters, which are not those of {weights_path}")
        if missing := [names_of[p] for p in parameters if names_of[p] not in names]:
            raise UserError(f"has no state for {len(missing)} of the parameters, such as {missing[0]}")
        found = {names[index]: entry for index, entry in entries.items()}
        state = {  # what never had a gradient has no state
            index: _fitted(found[names_of[p]], p, type(optimizer).__name__, names_of[p])
            for index, p in enumerate(parameters)
            if names_of[p] in found
        }
    except UserError as reason:
        anew = "pass --not_load_adam_optimizer" if "Adam" in path.name else "remove the file"
        raise UserError(f"{path} {reason}; {anew} to start the optimizer anew") from None
    groups = optimizer.state_dict()["param_groups"]
    if getattr(optimizer, "counts_by_group", False):
        groups = [group | {"step": max(int(entry.get("step", 0)) for entry in entries.values())} for group in groups]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def read_optimizer(path):
    """({number: {key: value}}, parameters of each group) of a torch optimizer's state dict."""
    saved = read_torch(path)
    try:
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        state = saved["state"].items()
        entries = {i: {OURS.get(k, k): v for k, v in entry.items() if v is not None} for i, entry in state}
        for group in saved["param_groups"]:
            for i in entries.keys() & set(group["params"]) if "step" in group else ():  # apex counts by group
                entries[i].setdefault("step", group["step"])
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path} is not the state of a torch optimizer (state, param_groups)") from error
    if any(not isinstance(i, int) or not 0 <= i < sum(sizes) for i in entries):
        raise DataError(f"{path} holds states of parameters that its groups do not count")
    return {i: entry for i, entry in entries.items() if entry}, sizes


def parameter_names(weights, sizes):
    """The names that the numbers of an optimizer mean, or None when its groups fit no part of the weights.

    weights: names in the order of the state dict; sizes: parameters of each group: all, or decayed and not decayed
    """
    trained = [name for name in weights if not name.endswith(NOT_TRAINED)]
    visual = [name for name in trained if VISUAL in name]
    for part in (trained, [name for name in trained if VISUAL not in name], visual):
        groups = [part]
        if len(sizes) == 2:
            groups = [[name for name in part if is_decayed(name) == decayed] for decayed in (True, False)]
        if [len(group) for group in groups] == sizes:
            return [name for group in groups for name in group]
    return None


def _fitted(entry, parameter, kind, name):
    """An own copy of a parameter's state, in its memory format."""
    kept = STATE_KEYS.get(kind, ("exp_avg", "exp_avg_sq"))
    if not entry.keys() >= set(kept):
        found = ", ".join(sorted(entry.keys() - {"step"}))
        raise UserError(f"holds {found} of {name}, where the {kind} of this run keeps {', '.join(kept)}")
    for key in kept:
        shape = tuple(getattr(entry[key], "shape", ()))
        if shape != parameter.shape:
            shapes = f"{shape}, where the parameter is {tuple(parameter.shape)}"
            raise UserError(f"holds an {key} of {name} that is {shapes}")
    fitted = {key: torch.empty_like(parameter, requires_grad=False).copy_(entry[key]) for key in kept}
    return fitted | {"step": entry["step"]} if "step" in entry else fitted
