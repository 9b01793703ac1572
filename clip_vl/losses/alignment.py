"""The losses that align two towers, by their published names.

loss = build_loss("SEED", dim=512, queue_size=65536)
value = loss(student, teacher, logit_scale=..., labels=...)     # the one call form: base.AlignmentLoss
"""

from clip_vl.engine.errors import UserError
from clip_vl.losses.contrastive import CrossEntropy, InfoNCE, SigLIP, UniCL
from clip_vl.losses.prototype_scores import DINO, ProtoCPC
from clip_vl.losses.queues import SEED, CompRess1q, CompRess2q
from clip_vl.losses.redundancy import BarlowTwins, VICReg
from clip_vl.losses.regression import SimReg, SimRegL1, SimRegSmoothL1
from clip_vl.losses.relational import RKD

LOSSES = {
    "InfoNCE": InfoNCE, "UniCL": UniCL, "SigLIP": SigLIP, "CrossEntropy": CrossEntropy,
    "SimReg": SimReg, "SimReg-L1": SimRegL1, "SimReg-SmoothL1": SimRegSmoothL1,
    "VICReg": VICReg, "BarlowTwins": BarlowTwins, "RKD": RKD,
    "CompRess-1q": CompRess1q, "CompRess-2q": CompRess2q, "SEED": SEED,
    "DINO": DINO, "ProtoCPC": ProtoCPC, "ProtoRKD": DINO,
}  # fmt: skip
VARIANTS = ("paper", "original")


def loss_class(name):
    """The class of a loss; case does not matter."""
    for known, cls in LOSSES.items():
        if known.lower() == name.lower():
            return cls
    raise UserError(f"--loss {name} is not one of {', '.join(LOSSES)}")


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
    cls = loss_class(name)
    if cls in (SimReg, VICReg, BarlowTwins):
        return cls(variant)
    if cls in (CompRess1q, CompRess2q, SEED):
        return cls(dim, queue_size, seed)
    if cls is RKD:
        return RKD(w_rkd_d, w_rkd_a)
    if cls is DINO:
        return DINO(n_prototypes, teacher_temperature)
    return ProtoCPC(n_prototypes, teacher_temperature, sinkhorn) if cls is ProtoCPC else cls()
