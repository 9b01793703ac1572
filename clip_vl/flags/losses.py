"""The flags of the losses that align two towers. No torch is imported here."""

import dataclasses
from dataclasses import dataclass

from clip_vl.flags.parser import flag


LOSSES = ("InfoNCE", "UniCL", "CrossEntropy", "SigLIP", "SimReg", "SimReg-L1", "SimReg-SmoothL1", "VICReg", "BarlowTwins",
          "RKD", "CompRess-1q", "CompRess-2q", "SEED", "DINO", "ProtoCPC", "ProtoRKD")  # fmt: skip


@dataclass
class LossFlags:
    """Loss"""

    loss: str = flag("InfoNCE", "Loss that aligns the towers; ProtoRKD is DINO.", "--distiller", choices=LOSSES)
    loss_variant: str = flag(
        "paper", "Formula of the paper, or of the original code where they differ.", choices=["paper", "original"]
    )
    teacher: str = flag("text", "Tower whose features are the targets.", choices=["text", "image"])
    w_align: float = flag(1.0, "Weight of the loss of --loss.", "--w_distill")
    w_simcse: float = flag(0.0, "Weight of SimCSE: two dropout masks of each text.")
    BYOL: bool = flag(False, "Add the distance between two views of each image.")
    w_rkd_d: float = flag(0.5, "Weight of RKD's distances.")
    w_rkd_a: float = flag(1.0, "Weight of RKD's angles.")
    dino_teacher_temp: float = flag(0.04, "Temperature of the teacher in DINO and ProtoCPC.")
    queue_size: int = flag(65536, "Number of features in the queue of SEED and CompRess.", at_least=1)
    num_prototypes: int = flag(65536, "Number of prototypes of DINO and ProtoCPC.", at_least=1)
    sinkhorn: bool = flag(False, "Balance ProtoCPC's target assignments by Sinkhorn iterations.")


@dataclass
class ProtoCLIPFlags:
    """ProtoCLIP"""

    add_projection_head: bool = flag(False, "ProtoCLIP: prototypes of each episode beside InfoNCE.")
    projection_hidden_dim: int = flag(2048, "Hidden width of the projections.")
    projection_dim: int = flag(128, "Output width of the projections.")
    projection_n_layers: int = flag(1, "Hidden layers of the projections; a linear layer follows them.", at_least=0)
    w_clip: float = flag(1.0, "Weight of InfoNCE.")
    w_proto: float = flag(0.0, "Weight of the loss of the other modality's prototypes.")
    w_proto_external: float = flag(0.0, "Weight of the loss of the external teacher's prototypes.")
    target_temperature: float = flag(-1.0, "Temperature of soft targets; hard labels where it is not above 0.")
    k: int = flag(20000, "Number of prototypes of an episode.", at_least=1)
    kmeans_max_iter: int = flag(20, "Iterations of k-means.")
    kmeans_nredo: int = flag(1, "Random starts of k-means, of which the best counts.")
    PBT: bool = flag(
        False, "Prototype back translation: prototypes are means of the student's features over the teacher's clusters."
    )
    external_teacher: str | None = flag(
        None, "Array (rows of the dataset, width), .npy, of an external teacher's features; needs --PBT."
    )
    clustering_frequency: int = flag(1, "Epochs between two clusterings; -1 for none.")
    infonce_warmup_epoch: int = flag(0, "Epochs of InfoNCE alone at the start.")
    lit_start_epoch: int = flag(
        -1, "Epoch, counted from 1, from which InfoNCE trains alone and the image tower is frozen (LiT); 0 for never."
    )
    lr_text: float = flag(-1.0, "Learning rate of everything but the image tower [--lr].")
    text_start_epoch: int = flag(-1, "First epoch, counted from 0, in which everything but the image tower trains.")
    text_end_epoch: int = flag(-1, "Epoch at which the learning rate of everything but the image tower reaches 0.")


def loss_readers(args):
    """{flag: (does --loss or --add_projection_head read it, what would)}, of the flags that not every loss reads."""
    families = {
        ("loss_variant",): ("SimReg", "SimReg-L1", "SimReg-SmoothL1", "VICReg", "BarlowTwins"),
        ("w_rkd_d", "w_rkd_a"): ("RKD",),
        ("dino_teacher_temp", "num_prototypes"): ("DINO", "ProtoRKD", "ProtoCPC"),
        ("queue_size",): ("CompRess-1q", "CompRess-2q", "SEED"),
        ("sinkhorn",): ("ProtoCPC",),
    }
    readers = {
        name: (args.loss in losses, f"--loss {', '.join(losses)}")
        for names, losses in families.items()
        for name in names
    }
    schedule = ("add_projection_head", "lit_start_epoch", "lr_text", "text_start_epoch", "text_end_epoch")
    for field in dataclasses.fields(ProtoCLIPFlags):
        if field.name not in schedule:
            readers[field.name] = (args.add_projection_head, "--add_projection_head")
    readers["w_align"] = (not args.add_projection_head, "runs without --add_projection_head, which have --w_clip")
    if args.add_projection_head:
        readers["external_teacher"] = (args.w_proto_external != 0, "--w_proto_external above 0")
        readers["w_proto_external"] = (bool(args.external_teacher), "--external_teacher")
    return readers
