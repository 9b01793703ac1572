"""Checkpoints under their published names: plain state dicts for exchange, and the hand-over from stage to stage.

A flag names a checkpoint by its stem: snap/pretrain/NAME/Epoch09 means Epoch09_LXRT.pth and, beside it, the files
_AdamOptim.pth, _SGDOptim.pth and _Scheduler.pth.
"""

import re
from pathlib import Path

import torch

from clip_vl.engine import dist
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import UserError
from clip_vl.models.fused.pretrained import state_for_exchange
from clip_vl.models.loading.settings import as_record
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.loading.weights import load_weights

ENCODER = re.compile(r"^(lxrt_encoder\.model\.)?bert\.")
FOREIGN = {re.compile(r"^lxmert\."): "bert.", re.compile(r"^lxrt_encoder\.model\.module\."): "lxrt_encoder.model."}
OPTIMIZER_FILES = {"adam": "_LXRT_AdamOptim.pth", "sgd": "_LXRT_SGDOptim.pth"}
SCHEDULER_FILE = "_LXRT_Scheduler.pth"


def checkpoint_path(stem, suffix):
    """The file a flag's stem means: `<stem><suffix>`, the stem itself, or `<stem>.pth` with or without `_LXRT`."""
    plain = str(stem).removesuffix("_LXRT")
    candidates = [f"{stem}{suffix}", stem, f"{plain}.pth", f"{plain}_LXRT.pth"]
    for path in map(Path, candidates):
        if path.is_file():
            return path
    raise UserError(
        f"no checkpoint {candidates[0]}: pass the stem of an existing one, such as snap/pretrain/NAME/Epoch09"
    )


def read_checkpoint(stem, suffix="_LXRT.pth"):
    """(state dict, path) of the checkpoint named by a stem; (None, None) without a stem.

    What transformers calls `lxmert` is `bert` here, as in LXMERT's own files; LXMERT fine-tuned on several GPUs has a
    "module." inside its names.
    """
    if not stem:
        return None, None
    path = checkpoint_path(stem, suffix)
    state = read_state_dict(path)
    for theirs, ours in FOREIGN.items():
        state = {theirs.sub(ours, name): tensor for name, tensor in state.items()}
    return state, path


def load_encoder(encoder, state, path, args):
    """The encoder of a pre-training or fine-tuned checkpoint; its heads are left out."""
    part = {ENCODER.sub("", name): tensor for name, tensor in state.items() if ENCODER.match(name)}
    load_weights(encoder, part, allow_partial=args.allow_partial, source=path)


def load_answer_head(logit_fc, state, path, answers, table, table_path):
    """The answer head of a pre-training checkpoint for another answer set: rows are found by the answer's text.

    logit_fc: the new head; answers: its answers in order
    table:    the pre-training AnswerTable, complete, read from table_path
    returns:  how many answers were found; the rows of the others are zero
    """
    prefix = "answer_head.logit_fc."
    head = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if not head:
        raise UserError(f"{path} has no answer head: pass it as --loadLXMERT, or a checkpoint trained with --taskQA")
    if len(head["3.weight"]) != len(table):
        raise UserError(
            f"{path} knows {len(head['3.weight'])} answers and {table_path} lists {len(table)}; they must be a pair"
        )
    found = [table.find(answer) for answer in answers]
    rows = torch.tensor([-1 if row is None else row for row in found])
    for name in ("3.weight", "3.bias"):
        picked = head[name].float()[rows.clamp(min=0)]
        picked[rows < 0] = 0
        head[name] = picked
    load_weights(logit_fc, head, source=path)
    return sum(row is not None for row in found)


def save_stage(stem, model, updater, settings):
    """Rank 0 writes a pre-training checkpoint: weights, optimizers and the place in the schedule, file by file.

    settings: JSON values that the weights' file holds as well (models/settings.py)
    """
    if dist.rank() != 0:
        return
    model = getattr(model, "module", model)
    weights = {f"module.{name}": tensor for name, tensor in state_for_exchange(model).items()}
    files = {"_LXRT.pth": weights, SCHEDULER_FILE: {"last_epoch": updater.update, "base_lrs": updater.base_lrs["adam"]}}
    for name, optimizer in updater.optimizers.items():
        files[OPTIMIZER_FILES[name]] = optimizer.state_dict()
    for suffix, value in files.items():
        save_plain(f"{stem}{suffix}", value, as_record(_with_pooler(settings, model)) if value is weights else None)


def save_task(folder, model, is_best, settings):
    """Rank 0 writes the fine-tuned weights as LAST.pth and, when they are the best so far, as BEST.pth."""
    if dist.rank() == 0:
        weights = state_for_exchange(model)
        for name in ("BEST.pth", "LAST.pth") if is_best else ("LAST.pth",):
            save_plain(folder / name, weights, as_record(_with_pooler(settings, model)))


def _with_pooler(settings, model):
    """The settings, and whether the model's pooler ends in tanh, which no weight says."""
    return settings | {"pooler_tanh": model.bert.pooler.tanh}


def task_result(best):
    """The report of the best epoch with the name of its checkpoint; without a validation there is but the last one."""
    return {"checkpoint": "BEST.pth" if best else "LAST.pth"} | best
