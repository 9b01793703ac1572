"""Everything a run needs to go on as if it had never stopped, in one checkpoint.

Weights, optimizers, counters, position. Random numbers need no saving, because every draw is keyed by its position
(engine/random.py).
"""

from typing import NamedTuple

from clip_vl.engine import dist
from clip_vl.engine.checkpoint import flatten_optimizer, load_latest, restore_optimizer, save_checkpoint
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.record import changed_flags

# Flags that may differ between a run and its continuation without changing what it computes.
FREE_FLAGS = {"output", "resume", "overwrite", "keep_last", "checkpoint_steps", "save_step", "num_workers", "tqdm",
              "stop_after_epoch", "max_damaged", "max_skipped", "dry_run", "data_root", "load",
              "allow_changed_data"}  # fmt: skip
RENAMED = {"logit_scale": "temperature"}  # flags that had another name when older runs were started


class Moment(NamedTuple):
    """What micro-batches change before the next update: the counters, the sums of the log, and its length."""

    updater: dict
    sums: dict
    log_end: int

    @classmethod
    def now(cls, files, updater, meters):
        return cls(updater.state(), dict(meters.sums), files.end())


def save_training(files, updater, meters, beside, position, *, flags, keep_last, data, settings=None, moment=None):
    """Write a resumable checkpoint -> whether it was written; a full disk costs one line, never the run.

    files:    the `RunFolder`
    beside:   {name: module} whose state goes into the checkpoint as well, such as a loss with a queue
    position: JSON values that say where training stands: epoch, batch, best
    flags:    dict of all flags, of which those that decide numbers must be the same on resuming
    data:     {name: digest} of the data that is trained on
    settings: JSON values that the weights' file holds, for those who load it elsewhere [the flags]
    moment:   that of the last update, for rank 0 to save by itself while other ranks are stuck; their sums are lost
    """
    if moment is None:
        sums = dist.gather(meters.state())  # each rank's own: their float sums must not be added in another order
    else:
        mine = meters.state(moment.sums)
        sums = [mine] + [{name: [0.0, 0.0] for name in mine}] * (dist.world_size() - 1)
    if dist.rank() != 0:
        return True
    tensors, optimizers = {"model": dist.bare(updater.model).state_dict()}, {}
    tensors |= {name: module.state_dict() for name, module in beside.items()}
    if moment is not None:
        good = updater.good_buffers()
        tensors = {n: {k: good.get(t.data_ptr(), t) for k, t in flat.items()} for n, flat in tensors.items()}
    for name, optimizer in updater.optimizers.items():
        tensors[f"optim_{name}"], optimizers[name] = flatten_optimizer(optimizer)
    counters = moment.updater if moment else updater.state()
    state = {"position": position, "updater": counters, "optimizers": optimizers, "meters": sums}
    state |= {"world_size": dist.world_size(), "flags": _binding(flags), "data": data}
    try:
        end = files.position()
        state["log_position"] = moment.log_end if moment else end
        save_checkpoint(files.checkpoints, counters["micro_step"], tensors, state, keep_last,
                        settings or _binding(flags))  # fmt: skip
        return True
    except OSError as error:
        print(f"warning: no checkpoint at update {counters['update']}: {error.strerror}; older ones are whole",
              flush=True)  # fmt: skip
        return False


def restore_training(files, updater, meters, beside, *, flags, data, allow_changed_data=False):
    """Bring everything to the newest whole checkpoint of the run and return its position; None when there is none.

    flags, data: as in `save_training`
    raises:      UserError when the flags, the data or the number of processes are not those of the run
    """
    found = None if files.replaces else load_latest(files.checkpoints, say=dist.print0)
    if found is None:
        files.start()
        files.truncate(0)
        return None
    path, tensors, state = found
    _check_form(path, tensors, state, updater)
    _check_same_run(state, flags)
    if not allow_changed_data:
        _check_same_data(state.get("data") or {}, data)
    files.start()
    dist.bare(updater.model).load_state_dict(tensors["model"])
    for name, module in beside.items():
        module.load_state_dict(tensors[name])
    for name, optimizer in updater.optimizers.items():
        restore_optimizer(optimizer, tensors[f"optim_{name}"], state["optimizers"][name])
    updater.load_state(state["updater"])
    meters.load_state(state["meters"][dist.rank()])
    files.truncate(state["log_position"])
    dist.print0(f"resumed from {path} (update {updater.update})")
    return state["position"]


def _check_form(path, tensors, state, updater):
    """DataError unless a checkpoint, whole as its digests may be, has the parts that `save_training` writes."""
    parts = {"position": dict, "updater": dict, "optimizers": dict, "meters": list, "world_size": int, "flags": dict,
             "log_position": int}  # fmt: skip
    wrong = [name for name, kind in parts.items() if not isinstance(state, dict) or type(state.get(name)) is not kind]
    wrong += [name for name in ("model", *(f"optim_{name}" for name in updater.optimizers)) if name not in tensors]
    if wrong or len(state["meters"]) != state["world_size"] or state["log_position"] < 0:
        raise DataError(f"{path} is not a checkpoint of this program ({', '.join(wrong) or 'meters'}): remove it, or "
                        "start again with --overwrite")  # fmt: skip


def _check_same_run(state, flags):
    if state["world_size"] != dist.world_size():
        raise UserError(
            f"this run was started with {state['world_size']} processes and is resumed with {dist.world_size()}; "
            "its order of samples needs the same number"
        )
    now = _binding(flags)
    before = {RENAMED.get(name, name): value for name, value in state["flags"].items()}
    changed = changed_flags({name: value for name, value in before.items() if name in now}, now)
    if changed:
        raise UserError(f"--resume with other flags than the run was started with: {', '.join(changed)}")


def _check_same_data(before, now):
    """Raise UserError where the digest of something that the run was trained on is another one now."""
    changed = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
    if before and changed:
        raise UserError(
            f"the data changed since the run was started: {', '.join(sorted(changed))}; bring the old data back, or "
            "pass --allow_changed_data to go on with what is there now"
        )


def _binding(flags):
    return {name: value for name, value in flags.items() if name not in FREE_FLAGS}

