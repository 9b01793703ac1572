"""How a dual encoder trains: which parameter at which rate, by which optimizer, on which schedule."""

from dataclasses import dataclass

import torch

from clip_vl.engine.errors import UserError
from clip_vl.engine.optim import say_long_warmup, warmup_cosine

NOT_OFFERED = ("adahessian", "adafactorbv", "clamb")  # needs second derivatives; state that no checkpoint can hold
NOT_DECAYED = ("bn", "ln", "bias", "logit_scale")


@dataclass(frozen=True)
class OptimSpec:
    """An optimizer by name, with its rates.

    text_lr: of everything but the image tower; None: `lr`
    is_vit:  the image tower is a ViT, for which published runs have other defaults of Adam
    beta1, beta2, eps: None for these defaults
    image_decay, text_decay: factor of the learning rate from each layer of the tower to the layer below
    """

    name: str = "adamw"
    lr: float = 5e-4
    text_lr: float | None = None
    weight_decay: float = 0.2
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None
    is_vit: bool = False
    image_decay: float = 1.0
    text_decay: float = 1.0
    apex: bool = False


def build_optimizers(model, spec, schedules):
    """{name: (optimizer, step -> factor)} of a dual encoder: one for the image tower, one for all the rest.

    schedules: {"image": step -> factor, "text": step -> factor}
    """
    optimizers = {}
    for side, groups in parameter_groups(model, spec).items():
        if groups:
            optimizers[side] = (build_optimizer(groups, spec), schedules[side])
    if not optimizers:
        raise UserError("everything is frozen: unlock a tower, or give one a head (--text_head_n_layers 1)")
    if spec.apex:
        from clip_vl.engine.apex_kernels import use_apex

        optimizers = use_apex(model, optimizers, next(model.parameters()).device)
    return optimizers


def parameter_groups(model, spec):
    """{"image": groups, "text": groups} by weight decay and layer; heads and scales stand above the last layer.

    "image" is the image tower alone, which follows `lr`. Everything else follows `text_lr`, the heads and projections
    of both sides as well (ProtoCLIP).

    No decay of vectors, of names with bn, ln, bias or logit_scale in them, and of ProtoCLIP's projections.
    """
    rates = {"image": spec.lr, "text": spec.lr if spec.text_lr is None else spec.text_lr}
    scales = {}
    for side, decay in (("image", spec.image_decay), ("text", spec.text_decay)):
        if decay != 1:
            from clip_vl.models.dual.layers import layer_of_parameters

            layer_of, last = layer_of_parameters(getattr(model, f"{side}_tower"))
            scales |= {f"{side}_tower.{name}": decay ** (last + 1 - layer) for name, layer in layer_of.items()}
    groups = {"image": {}, "text": {}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            side = "image" if name.startswith("image_tower.") else "text"
            plain = parameter.ndim < 2 or any(word in name for word in NOT_DECAYED) or "_projection." in name
            key = (0.0 if plain else spec.weight_decay, rates[side] * scales.get(name, 1.0))
            groups[side].setdefault(key, []).append(parameter)
    return {
        side: [
            {"params": p, "weight_decay": decay, "lr": lr}
            for (decay, lr), p in sorted(found.items(), key=lambda g: g[0])
        ]
        for side, found in groups.items()
    }


def build_optimizer(groups, spec):
    """torch's AdamW, or the optimizer that timm knows by the name."""
    beta1 = 0.9 if spec.beta1 is None else spec.beta1
    beta2 = (0.98 if spec.is_vit else 0.999) if spec.beta2 is None else spec.beta2
    adam = {"betas": (beta1, beta2), "eps": (1e-6 if spec.is_vit else 1e-8) if spec.eps is None else spec.eps}
    if spec.name == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, **adam, fused=True)
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    unknown = spec.name.removeprefix("lookahead_") not in list_optimizers()
    if unknown or any(word in spec.name for word in NOT_OFFERED):
        known = [name for name in list_optimizers() if not any(word in name for word in NOT_OFFERED)]
        raise UserError(f"--opt {spec.name} is not an optimizer known here; one of {', '.join(known)}")
    info = get_optimizer_info(spec.name.removeprefix("lookahead_"))
    takes = {"betas": info.has_betas and info.num_betas == 2, "eps": info.has_eps}
    asked = {"betas": spec.beta1 is not None or spec.beta2 is not None, "eps": spec.eps is not None}
    for name in adam:
        if asked[name] and not takes[name]:
            given = "--eps" if name == "eps" else "--beta1 and --beta2"
            raise UserError(f"--opt {spec.name} does not take Adam's {name}: leave {given} out")
    options = {name: value for name, value in adam.items() if takes[name] and (asked[name] or "adam" in spec.name)}
    return create_optimizer_v2(groups, opt=spec.name, lr=spec.lr, weight_decay=spec.weight_decay, **options)


def one_schedule(total, warmup):
    """{"image": step -> factor, "text": step -> factor}: a warm-up, then a cosine to 0 after `total` steps."""
    say_long_warmup(warmup, total)
    schedule = warmup_cosine(total, warmup)
    return {"image": schedule, "text": schedule}


def phase_schedules(per_epoch, epochs, warmup, *, lit_start=-1, text_start=-1, text_end=-1):
    """The same in phases, of `per_epoch` steps an epoch.

    The image tower trains in the epochs before `lit_start`, counted from 1, 0 or less for all of them; everything else
    trains from epoch `text_start` to `text_end`, counted from 0, or to the end.
    """
    start = max(text_start, 0) * per_epoch
    end = (text_end if text_end >= 0 else epochs) * per_epoch
    total = (lit_start - 1 if lit_start > 0 else epochs) * per_epoch
    for steps, whose in {total: "the image tower's", end - start: "the run's"}.items():
        say_long_warmup(warmup, steps, whose)
    return {"image": warmup_cosine(total, warmup), "text": warmup_cosine(end, warmup, start)}
