"""The flags of the losses that align two towers. No torch is imported here."""

from dataclasses import dataclass

from clip_vl.flags.parser import flag
from clip_vl.flags.published import INFONCE_ALONE


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
class EpisodeFlags:
    """Episodes"""

    episode_size: int = flag(0, "Number of pairs drawn for an epoch; 0 for plain epochs over all of them.", at_least=0)
    episode_sampling: str = flag(
        "replacement",
        "Sampling of an episode; with replacement, as published, some pairs come twice.",
        choices=["replacement", "permutation"],
    )


@dataclass
class PhaseFlags:
    """Phases of training"""

    lit_start_epoch: int = flag(
        -1, "Epoch, counted from 1, from which the image tower is frozen (LiT), without prototypes; 0 for never."
    )
    lr_text: float = flag(-1.0, "Learning rate of everything but the image tower [--lr].")
    text_start_epoch: int = flag(-1, "First epoch, counted from 0, in which everything but the image tower trains.")
    text_end_epoch: int = flag(-1, "Epoch at which the learning rate of everything but the image tower reaches 0.")

    def schedules(self, per_epoch):
        """{"image": step -> factor, "text": step -> factor} for epochs of `per_epoch` steps."""
        from clip_vl.models.dual.optim import phase_schedules

        return phase_schedules(per_epoch, self.epochs, self.warmup, lit_start=self.lit_start_epoch,
                               text_start=self.text_start_epoch, text_end=self.text_end_epoch)  # fmt: skip


@dataclass
class ProtoCLIPFlags:
    """ProtoCLIP"""

    IGNORED = INFONCE_ALONE
    loss: str = flag("InfoNCE", "Loss beside the prototypes.", "--distiller", choices=("InfoNCE",))
    w_clip: float = flag(1.0, "Weight of InfoNCE in epochs with prototypes.")
    w_proto: float = flag(0.0, "Weight of the loss of the other modality's prototypes.")
    w_proto_external: float = flag(0.0, "Weight of the loss of the external teacher's prototypes.")
    k: int = flag(20000, "Number of prototypes of an episode.", at_least=1)
    target_temperature: float = flag(-1.0, "Temperature of soft targets; hard labels where it is not above 0.")
    PBT: bool = flag(
        False, "Prototype back translation: prototypes are means of the student's features over the teacher's clusters."
    )
    external_teacher: str | None = flag(
        None, "Array (rows of the dataset, width), .npy, of an external teacher's features; needs --PBT."
    )
    projection_n_layers: int = flag(1, "Hidden layers of the projections; a linear layer follows them.", at_least=0)
    projection_hidden_dim: int = flag(2048, "Hidden width of the projections.")
    projection_dim: int = flag(128, "Output width of the projections.")
    kmeans_max_iter: int = flag(20, "Iterations of k-means.")
    kmeans_nredo: int = flag(1, "Random starts of k-means, of which the best counts.")
    clustering_frequency: int = flag(1, "Epochs between two clusterings; -1 for none.")
    infonce_warmup_epoch: int = flag(0, "Epochs of InfoNCE alone at the start.")

    def projection(self):
        """The `Projection` of these flags."""
        from clip_vl.models.dual.spec import Projection

        return Projection(self.projection_n_layers, self.projection_hidden_dim, self.projection_dim)

    def phases(self):
        """The `Phases` of these flags."""
        from clip_vl.losses.episode import Phases

        return Phases(self.infonce_warmup_epoch, self.lit_start_epoch, self.clustering_frequency)


def loss_readers(args):
    """{flag: (whether --loss reads it, what would)}, of the flags that not every loss reads."""
    families = {
        ("loss_variant",): ("SimReg", "SimReg-L1", "SimReg-SmoothL1", "VICReg", "BarlowTwins"),
        ("w_rkd_d", "w_rkd_a"): ("RKD",),
        ("dino_teacher_temp", "num_prototypes"): ("DINO", "ProtoRKD", "ProtoCPC"),
        ("queue_size",): ("CompRess-1q", "CompRess-2q", "SEED"),
        ("sinkhorn",): ("ProtoCPC",),
    }
    return {
        name: (args.loss in losses, f"--loss {', '.join(losses)}")
        for names, losses in families.items()
        for name in names
    }


def prototype_readers(args):
    """The same for the flags of an external teacher and of episodes."""
    return {
        "external_teacher": (args.w_proto_external != 0, "--w_proto_external above 0"),
        "w_proto_external": (bool(args.external_teacher), "--external_teacher"),
        "episode_sampling": (args.episode_size, "--episode_size"),
    }
