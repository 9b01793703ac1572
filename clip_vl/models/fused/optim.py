"""Which optimizer owns which parameter of a fused encoder, at which rate and on which schedule."""

from dataclasses import dataclass

import torch

from clip_vl.engine import dist
from clip_vl.engine.optim import param_groups, step_decay, warmup_linear
from clip_vl.engine.optimizers import DECAYED, build_optimizer

VISUAL = "visual_model."  # part of the name of every parameter of the visual tower


@dataclass(frozen=True)
class OptimSettings:
    """--optim and its rates; `visual` is None, "sgd" or "adam": the visual tower's own optimizer.

    apex: use apex's fused kernels where they are installed
    """

    optim: str = "hf_adamw"
    lr: float = 1e-4
    weight_decay: float = 0.01
    epsilon: float = 1e-6
    warmup_ratio: float = 0.1
    epochs: int = 10
    visual: str | None = None
    visual_lr: float = 0.001
    visual_momentum: float = 0.0
    visual_weight_decay: float = 0.0004
    milestones: tuple[int, ...] = (2, 5)
    first_epoch: int = 0
    apex: bool = False


def build_optimizers(model, settings, updates_per_epoch):
    """The optimizers of the transformer and, when asked, of the visual tower: {name: (optimizer, update -> factor)}."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    visual = [(name, p) for name, p in named if settings.visual and VISUAL in name]
    others = [(name, p) for name, p in named if not (settings.visual and VISUAL in name)]
    schedule = warmup_linear(updates_per_epoch * settings.epochs, settings.warmup_ratio)
    if settings.optim not in DECAYED:
        dist.print0(f"--optim {settings.optim}: a constant learning rate and no weight decay, as in LXMERT")
        schedule = lambda update: 1.0  # noqa: E731
    optimizers = {"adam": (_optimizer(others, settings.optim, settings.lr, settings), schedule)}
    if visual:
        decay = step_decay(settings.milestones, updates_per_epoch, settings.first_epoch)
        optimizers["sgd"] = (_visual_optimizer(visual, settings), decay)
    if settings.apex:
        from clip_vl.engine.apex_kernels import use_apex

        optimizers = use_apex(model, optimizers, next(model.parameters()).device)
    return optimizers


def _visual_optimizer(named, settings):
    if settings.visual == "adam":
        optim = settings.optim if settings.optim in DECAYED else "hf_adamw"
        return _optimizer(named, optim, settings.visual_lr, settings)
    return torch.optim.SGD(
        [parameter for _, parameter in named],
        lr=settings.visual_lr,
        momentum=settings.visual_momentum,
        weight_decay=settings.visual_weight_decay,
        fused=True,
    )


def _optimizer(named, optim, lr, settings):
    """BertAdam decayed every parameter in its published runs, the AdamWs spared biases and BERT's LayerNorms."""
    spares = optim in ("hf_adamw", "adamw")
    groups = param_groups(named, settings.weight_decay) if spares else [parameter for _, parameter in named]
    return build_optimizer(optim, groups, lr, settings.weight_decay, settings.epsilon)
