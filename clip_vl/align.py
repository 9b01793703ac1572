"""The dual encoder: train any image tower with any text tower, head and loss on pairs of images and captions.

    python -m clip_vl.align --output snap/align/NAME --train_data pairs.csv --image_model RN50 --text_model RN50 --loss InfoNCE
    bash scripts/align.bash 0,1,2,3 NAME 9590 4 --train_data pairs.csv --loss SEED --lock_text_model ...    four GPUs
    python -m clip_vl.align ... --lock_text_model --cache_teacher     encode the locked tower once, train without it

Writes epoch_N.pt, resumable checkpoints, log.jsonl, result.json and report.html; with --valid_data also recall at 1, 5
and 10 of held-out pairs. CLIP (arXiv:2103.00020), LiT (2111.07991), SEED (2101.04731), CompRess (2010.14713), ProtoCLIP
(2206.10996), SigLIP (2303.15343) and the others of `--loss` differ in flags alone; scripts/recipes/ has them.
"""

from dataclasses import dataclass

from clip_vl.engine.flags import flag, parse
from clip_vl.engine.run_flags import RunFlags
from clip_vl.models.dual_flags import (
    DualDataFlags,
    DualOptimFlags,
    ImageTowerFlags,
    PublishedRunFlags,
    SharedTowerFlags,
    TextTowerFlags,
    check_dual_flags,
    name_output,
)


@dataclass
class LossFlags:
    """Loss"""

    loss: str = flag("InfoNCE", "InfoNCE, UniCL, CrossEntropy, SigLIP, SimReg, SimReg-L1, SimReg-SmoothL1, VICReg, BarlowTwins, "
                     "RKD, CompRess-1q, CompRess-2q, SEED, DINO or ProtoCPC.", "--distiller")  # fmt: skip
    loss_variant: str = flag("paper", "The formula of the paper, or of the original code where they differ.", choices=["paper", "original"])
    teacher: str = flag("text", "Side whose features teach.", choices=["text", "image"])
    w_align: float = flag(1.0, "Weight of the loss.", "--w_distill")
    w_simcse: float = flag(0.0, "Weight of SimCSE: two dropout masks of each text.")
    BYOL: bool = flag(False, "Add the distance between two views of each image.")
    w_rkd_d: float = flag(0.5, "Weight of RKD's distances.")
    w_rkd_a: float = flag(1.0, "Weight of RKD's angles.")
    dino_teacher_temp: float = flag(0.04, "Temperature of the teacher in DINO and ProtoCPC.")
    queue_size: int = flag(65536, "Features kept by SEED and CompRess.")
    num_prototypes: int = flag(65536, "Prototypes of DINO and ProtoCPC.")
    sinkhorn: bool = flag(False, "ProtoCPC: balance the teacher's assignments by Sinkhorn iterations.")


@dataclass
class ProtoCLIPFlags:
    """ProtoCLIP"""

    add_projection_head: bool = flag(False, "ProtoCLIP: prototypes of each episode beside InfoNCE.")
    projection_hidden_dim: int = flag(2048, "Width inside the projections.")
    projection_dim: int = flag(128, "Width of the projections.")
    projection_n_layers: int = flag(2, "Their layers; 0 is a single linear one.")
    w_clip: float = flag(1.0, "Weight of InfoNCE.")
    w_proto: float = flag(0.0, "Weight of the other modality's prototypes.")
    w_proto_external: float = flag(0.0, "Weight of the external teacher's prototypes.")
    target_temperature: float = flag(-1.0, "Temperature of soft targets; hard labels where it is not above 0.")
    k: int = flag(20000, "Prototypes of an episode.")
    kmeans_max_iter: int = flag(20, "Iterations of k-means.")
    kmeans_nredo: int = flag(1, "Starts of k-means, of which the best counts.")
    PBT: bool = flag(False, "Back-translated prototypes: means of the student's features over the teacher's clusters.")
    external_teacher: str | None = flag(None, "Array (rows of the data set, width), .npy, of an external teacher; needs --PBT.")
    clustering_frequency: int = flag(1, "Epochs between two clusterings; -1 for none.")
    infonce_warmup_epoch: int = flag(0, "Epochs of InfoNCE alone at the start.")
    lit_start_epoch: int = flag(-1, "From this epoch InfoNCE alone, the image tower at rest; -1 for never.")
    lr_text: float = flag(-1.0, "Learning rate of the text side [--lr].")
    text_start_epoch: int = flag(-1, "First epoch in which the text side learns.")
    text_end_epoch: int = flag(-1, "Epoch at which its schedule ends.")


@dataclass
class AlignFlags(
    RunFlags, DualDataFlags, ImageTowerFlags, TextTowerFlags, SharedTowerFlags, LossFlags, ProtoCLIPFlags, DualOptimFlags,
    PublishedRunFlags
):  # fmt: skip
    """Dual encoder"""

    num_workers: int = flag(0, "Loader workers of each process.", "--numWorkers", "--workers")
    episode_size: int = flag(0, "Pairs drawn for an epoch; 0 for plain epochs over all of them.")
    episode_sampling: str = flag("replacement", "How an episode is drawn; as published some pairs come twice.", choices=["replacement", "permutation"])
    cache_teacher: bool = flag(False, "Encode the locked tower once for the data set, and train without it in memory.")
    restart: bool = flag(False, "With --load, count epochs from 0; they always are: --resume goes on with a run.")
    retrieval_frequency: int = flag(1, "Epochs between two evaluations of --valid_data; 0 for none but the last.", "--retrieval_eval_frequency")
    eval_first: bool = flag(False, "Evaluate --valid_data before training as well.")
    zeroshot_frequency: int = flag(0, "Published flag.", "--zeroshot_eval_frequency", dead="evaluation suites are programs of their own")
    linear_frequency: int = flag(0, "Published flag.", "--linear_eval_frequency", dead="evaluation suites are programs of their own")
    nlp_eval_frequency: int = flag(0, "Published flag.", dead="evaluation suites are programs of their own")
    visualize_frequency: int = flag(-1, "Published flag.", dead="the original never read it")


FLAGS = parse(AlignFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import torch

from clip_vl.datasets.align import AlignDataset, EvalPairs, PairCount, caption_epoch
from clip_vl.datasets.captions import open_sources
from clip_vl.datasets.batches import build_loader, to_device, training_loader
from clip_vl.datasets.crops import eval_crop, train_crop
from clip_vl.datasets.episodes import build_order, eval_rows
from clip_vl.datasets.teacher_cache import cached_features
from clip_vl.engine import dist
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.dry_run import dry_run
from clip_vl.engine.errors import UserError
from clip_vl.engine.grad_cache import GradCache
from clip_vl.engine.job import Job
from clip_vl.engine.optim import autocast, warmup_cosine
from clip_vl.engine.random import seed_step
from clip_vl.engine.report import write_report
from clip_vl.evaluation.recall import evaluate_retrieval
from clip_vl.losses.alignment import build_loss, needs_of
from clip_vl.losses.prototypes import Episode
from clip_vl.losses.self_supervised import byol, simcse
from clip_vl.models.dual_build import build_dual_encoder, build_updater


def objective(outputs, labels, job, args):
    """{name: weighted loss} of a batch, from what the model made of it."""
    student, teacher = ("image", "text") if args.teacher == "text" else ("text", "image")
    kind = "scores" if job.loss.needs_prototypes else "features"
    scales = {name: outputs.get(name) for name in ("logit_scale", "logit_bias")}
    aligned = job.loss(outputs[f"{student}_{kind}"], outputs[f"{teacher}_{kind}"], labels=labels, **scales)
    losses = {"loss_align": (args.w_clip if args.add_projection_head else args.w_align) * aligned}
    if args.w_simcse:
        losses["loss_simcse"] = args.w_simcse * simcse(outputs["text_features"], outputs["text_features_2"])
    if args.BYOL:
        losses["loss_byol"] = byol(outputs["image_features"], outputs["image_features_2"])
    return losses


def train_one_epoch(job, epoch, start, best, args):
    """The epoch's micro-batches from `start` on."""
    model, updater, batches = job.model.train(), job.updater, job.order.epoch(epoch)
    job.loss.train()
    if args.dry_run:
        batches = batches[: args.gradient_accumulation_steps]
    loader = training_loader(job.train_set, epoch, batches[start:], job.damage, job.device, args)
    for done, batch in enumerate(loader, start + 1):
        is_last, in_this_update = job.accumulation(done, len(batches))
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        if args.w_simcse:
            inputs["two_texts"] = True
        losses_of = lambda outputs: job.objective(outputs, batch, epoch)  # noqa: B023, E731
        with updater.micro_batch(is_last):
            if args.grad_cache:
                losses = job.grad_cache(inputs, losses_of, in_this_update, is_last)
            else:
                losses = losses_of(model(inputs))
                updater.backward(sum(losses.values()), in_this_update)
        for name, value in losses.items():
            job.meters.add(name, value)
        job.report(epoch, total=True)
        if is_last:
            stop = job.step(lambda: [job.source.name(int(row)) for row in batch["rows"][:4]])  # noqa: B023
            job.after_update()
            job.save_if_due(stop, epoch=epoch, batch=done, best=best)
