"""The losses that align two towers, by their published names; a run imports the one that it uses.

loss = build_loss("SEED", dim=512, queue_size=65536)
value = loss(student, teacher, logit_scale=..., labels=...)     # the one call form: base.AlignmentLoss
"""

import importlib

from clip_vl.engine.errors import UserError

LOSSES = {  # name: (file of this folder, class, the options of `build_loss` that it takes)
    "InfoNCE": ("contrastive", "InfoNCE", ()),
    "UniCL": ("contrastive", "UniCL", ()),
    "SigLIP": ("contrastive", "SigLIP", ()),
    "CrossEntropy": ("contrastive", "CrossEntropy", ()),
    "SimReg": ("regression", "SimReg", ("variant",)),
    "SimReg-L1": ("regression", "SimRegL1", ()),
    "SimReg-SmoothL1": ("regression", "SimRegSmoothL1", ()),
    "VICReg": ("redundancy", "VICReg", ("variant",)),
    "BarlowTwins": ("redundancy", "BarlowTwins", ("variant",)),
    "RKD": ("relational", "RKD", ("w_rkd_d", "w_rkd_a")),
    "CompRess-1q": ("queues", "CompRess1q", ("dim", "queue_size", "seed")),
    "CompRess-2q": ("queues", "CompRess2q", ("dim", "queue_size", "seed")),
    "SEED": ("queues", "SEED", ("dim", "queue_size", "seed")),
    "DINO": ("prototype_scores", "DINO", ("n_prototypes", "teacher_temperature")),
    "ProtoCPC": ("prototype_scores", "ProtoCPC", ("n_prototypes", "teacher_temperature", "sinkhorn")),
    "ProtoRKD": ("prototype_scores", "DINO", ("n_prototypes", "teacher_temperature")),
}
VARIANTS = ("paper", "original")


def loss_class(name):
    """The class of a loss; case does not matter."""
    module, cls, _ = _entry(name)
    return getattr(importlib.import_module(f"clip_vl.losses.{module}"), cls)


def build_loss(name, dim, *, variant="paper", queue_size=65536, n_prototypes=65536, teacher_temperature=0.04,
               w_rkd_d=0.5, w_rkd_a=1.0, sinkhorn=False, seed=0):  # fmt: skip
    """A loss module for features of width `dim`; each takes what it needs of the rest.

    variant:             "paper", or "original": what the ITRA code computes, of SimReg, VICReg and BarlowTwins
    queue_size:          K of CompRess and SEED;  n_prototypes: K of DINO and ProtoCPC
    teacher_temperature: of DINO and ProtoCPC;  w_rkd_d, w_rkd_a: weights of RKD's distances and angles
    sinkhorn:            ProtoCPC's targets are balanced;  seed: of the queues' first features
    """
    if variant not in VARIANTS:
        raise UserError(f"--loss_variant {variant} is not one of {', '.join(VARIANTS)}")
    options = {"dim": dim, "variant": variant, "queue_size": queue_size, "n_prototypes": n_prototypes,
               "teacher_temperature": teacher_temperature, "w_rkd_d": w_rkd_d, "w_rkd_a": w_rkd_a,
               "sinkhorn": sinkhorn, "seed": seed}  # fmt: skip
    return loss_class(name)(*(options[option] for option in _entry(name)[2]))


def pair_losses(loss, outputs, labels, *, teacher="text", weight=1.0, w_simcse=0.0, byol=False):
    """{name: weighted loss} of a batch of pairs: `loss`, and SimCSE's and BYOL's where they are wanted.

    outputs: what `DualEncoder.forward` returns;  teacher: the tower ("text", "image") whose features are the targets
    """
    student = "image" if teacher == "text" else "text"
    kind = "scores" if loss.needs_prototypes else "features"
    scales = {name: outputs.get(name) for name in ("logit_scale", "logit_bias")}
    aligned = loss(outputs[f"{student}_{kind}"], outputs[f"{teacher}_{kind}"], labels=labels, **scales)
    losses = {"loss_align": weight * aligned}
    if w_simcse:
        from clip_vl.losses.contrastive import simcse_loss

        losses["loss_simcse"] = w_simcse * simcse_loss(outputs["text_features"], outputs["text_features_2"])
    if byol:
        from clip_vl.losses.regression import byol_loss

        losses["loss_byol"] = byol_loss(outputs["image_features_2"], outputs["image_features"])
    return losses


def _entry(name):
    for known, entry in LOSSES.items():
        if known.lower() == name.lower():
            return entry
    raise UserError(f"--loss {name} is not one of {', '.join(LOSSES)}")
