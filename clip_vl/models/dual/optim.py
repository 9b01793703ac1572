"""How a dual encoder learns: which parameter at which rate, by which optimizer, on which schedule."""

import torch

from clip_vl.engine.errors import UserError
from clip_vl.engine.optim import say_long_warmup, warmup_cosine
from clip_vl.models.dual.layers import layer_of_parameters

NOT_OFFERED = ("adahessian", "adafactorbv", "clamb")  # needs second derivatives; state that no checkpoint can hold
NOT_DECAYED = ("bn", "ln", "bias", "logit_scale")


def build_optimizers(model, args, schedules):
    """{name: (optimizer, update -> factor)} of a dual encoder: one for the image tower, one for all the rest.

    schedules: {"image": update -> factor, "text": update -> factor}
    """
    optimizers = {}
    for side, groups in parameter_groups(model, args).items():
        if groups:
            optimizers[side] = (build_optimizer(groups, args), schedules[side])
    if not optimizers:
        raise UserError("everything is frozen: unlock a tower, or give one a head (--text_head_n_layers 1)")
    if args.apex:
        from clip_vl.engine.apex_kernels import use_apex

        optimizers = use_apex(model, optimizers, next(model.parameters()).device)
    return optimizers


def parameter_groups(model, args):
    """{"image": groups, "text": groups} by weight decay and layer; heads and scales stand above the last layer.

    "image" is the image tower alone, which follows --lr. Everything else follows --lr_text, the heads and projections
    of both sides as well (ProtoCLIP).

    No decay of vectors, of names with bn, ln, bias or logit_scale in them, and of ProtoCLIP's projections.
    """
    text_lr = getattr(args, "lr_text", -1)
    rates = {"image": args.lr, "text": args.lr if text_lr < 0 else text_lr}
    decays = {"image": args.layer_decay_image, "text": args.layer_decay_text}
    scales = {}
    for side in ("image", "text"):
        layer_of, last = layer_of_parameters(getattr(model, f"{side}_tower")) if decays[side] != 1 else ({}, 0)
        scales |= {f"{side}_tower.{name}": decays[side] ** (last + 1 - layer) for name, layer in layer_of.items()}
    groups = {"image": {}, "text": {}}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            side = "image" if name.startswith("image_tower.") else "text"
            plain = parameter.ndim < 2 or any(word in name for word in NOT_DECAYED) or "_projection." in name
            key = (0.0 if plain else args.weight_decay, rates[side] * scales.get(name, 1.0))
            groups[side].setdefault(key, []).append(parameter)
    return {
        side: [
            {"params": p, "weight_decay": decay, "lr": lr}
            for (decay, lr), p in sorted(found.items(), key=lambda g: g[0])
        ]
        for side, found in groups.items()
    }


def build_optimizer(groups, args):
    """torch's AdamW, or the optimizer that timm knows as --opt."""
    vit = "vit" in args.image_model.lower()
    beta1 = 0.9 if args.beta1 is None else args.beta1
    beta2 = (0.98 if vit else 0.999) if args.beta2 is None else args.beta2
    adam = {"betas": (beta1, beta2), "eps": (1e-6 if vit else 1e-8) if args.eps is None else args.eps}
    if args.opt == "adamw":
        return torch.optim.AdamW(groups, lr=args.lr, **adam, fused=True)
    from timm.optim import create_optimizer_v2, get_optimizer_info, list_optimizers

    unknown = args.opt.removeprefix("lookahead_") not in list_optimizers()
    if unknown or any(word in args.opt for word in NOT_OFFERED):
        known = [name for name in list_optimizers() if not any(word in name for word in NOT_OFFERED)]
        raise UserError(f"--opt {args.opt} is not an optimizer known here; one of {', '.join(known)}")
    info = get_optimizer_info(args.opt.removeprefix("lookahead_"))
    takes = {"betas": info.has_betas and info.num_betas == 2, "eps": info.has_eps}
    asked = {"betas": args.beta1 is not None or args.beta2 is not None, "eps": args.eps is not None}
    for name in adam:
        if asked[name] and not takes[name]:
            given = "--eps" if name == "eps" else "--beta1 and --beta2"
            raise UserError(f"--opt {args.opt} does not take Adam's {name}: leave {given} out")
    options = {name: value for name, value in adam.items() if takes[name] and (asked[name] or "adam" in args.opt)}
    return create_optimizer_v2(groups, opt=args.opt, lr=args.lr, weight_decay=args.weight_decay, **options)


def protoclip_schedules(args, updates_per_epoch):
    """{"image": update -> factor, "text": update -> factor}: a warm-up, then a cosine to 0 over all epochs.

    In ProtoCLIP's phases the image tower learns in the epochs before --lit_start_epoch, counted from 1, and everything
    else from --text_start_epoch to --text_end_epoch.
    """
    start = max(args.text_start_epoch, 0) * updates_per_epoch
    end = (args.text_end_epoch if args.text_end_epoch >= 0 else args.epochs) * updates_per_epoch
    total = (args.lit_start_epoch - 1 if args.lit_start_epoch > 0 else args.epochs) * updates_per_epoch
    for updates, whose in {total: "the image tower's", end - start: "the run's"}.items():
        say_long_warmup(args.warmup, updates, whose)
    return {"image": warmup_cosine(total, args.warmup), "text": warmup_cosine(end, args.warmup, start)}
