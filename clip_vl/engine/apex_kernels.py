"""NVIDIA apex's fused Adam and layer norm, for --apex; nothing else in the repository knows of apex."""

import torch
from torch import nn

from clip_vl.engine import dist
from clip_vl.engine.optimizers import BertAdam, effective_rates


def use_apex(model, optimizers, device):
    """Put FusedLayerNorm into a model and FusedAdam in the place of its Adams; the line says what was done.

    optimizers: {name: (optimizer, update -> factor)}, which compute the same afterwards
    returns:    as given, or with FusedAdam where apex is installed and the device is a GPU
    """
    if device.type != "cuda":
        dist.print0("--apex: apex's kernels are for GPUs, torch's own are used on this device")
        return optimizers
    try:
        from apex.normalization import FusedLayerNorm
        from apex.optimizers import FusedAdam

        fused = {name: (_fused_adam(optimizer, FusedAdam), factor) for name, (optimizer, factor) in optimizers.items()}
    except (ImportError, RuntimeError) as error:  # RuntimeError: apex without its CUDA extensions
        dist.print0(f"--apex: apex is not installed with its CUDA extensions ({error}), torch's own kernels are used")
        return optimizers
    changed = ", ".join(name for name in fused if fused[name][0] is not optimizers[name][0]) or "no optimizer"
    dist.print0(f"--apex: FusedAdam for {changed}, FusedLayerNorm in {_fuse_layer_norms(model, FusedLayerNorm)} places")
    return fused


def _fuse_layer_norms(model, kind):
    """Replace every nn.LayerNorm with a bias by one of apex over the same parameters; returns how many."""
    found = [
        (parent, name, norm)
        for parent in model.modules()
        for name, norm in parent.named_children()
        if type(norm) is nn.LayerNorm and norm.bias is not None
    ]
    for parent, name, norm in found:
        fused = kind(norm.normalized_shape, eps=norm.eps)
        fused.weight, fused.bias = norm.weight, norm.bias
        setattr(parent, name, fused.train(norm.training))
    return len(found)


def _fused_adam(optimizer, kind):
    """An apex optimizer with the formula, parameters and rates of an Adam that has not begun; others as they are."""
    if type(optimizer) not in (BertAdam, torch.optim.AdamW, torch.optim.Adam):
        return optimizer

    class FusedAdam(kind):
        counts_by_group = True

        def step(self):
            rates = [(group["lr"], group["weight_decay"]) for group in self.param_groups]
            for group in self.param_groups:
                if "correct_bias" in group:
                    group["lr"], group["weight_decay"] = effective_rates(group, int(group.get("step", 0)) + 1)
            super().step()
            for group, (lr, decay) in zip(self.param_groups, rates):
                group["lr"], group["weight_decay"] = lr, decay

        def zero_grad(self, set_to_none=True):
            torch.optim.Optimizer.zero_grad(self, set_to_none)

    kept = ("params", "lr", "betas", "eps", "weight_decay", "correct_bias")
    groups = [{key: group[key] for key in kept if key in group} for group in optimizer.param_groups]
    return FusedAdam(
        groups,
        bias_correction=not isinstance(optimizer, BertAdam),
        adam_w_mode=type(optimizer) is not torch.optim.Adam,
        set_grad_none=True,
    )
