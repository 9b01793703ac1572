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

from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.align import AlignDataset
from clip_vl.datasets.batches import DamagedPairs, build_loader, evaluation_loader, training_loader
from clip_vl.datasets.captions import open_sources
from clip_vl.datasets.crops import crops_for
from clip_vl.datasets.encoding import ImagesOf, TextsOf, retrieval_items, shares
from clip_vl.datasets.episodes import training_order
from clip_vl.datasets.teacher_cache import cached_features
from clip_vl.engine import dist
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.dry_run import dry_run
from clip_vl.engine.errors import UserError
from clip_vl.engine.grad_cache import cached_backward, cached_forward
from clip_vl.engine.job import Job
from clip_vl.engine.optim import autocast
from clip_vl.engine.random import derive_seed, seed_step
from clip_vl.engine.report import write_report
from clip_vl.evaluation.features import collect
from clip_vl.evaluation.gallery import retrieval_gallery
from clip_vl.evaluation.recall import retrieval_metrics
from clip_vl.losses.alignment import build_loss, loss_class
from clip_vl.losses.contrastive import simcse_loss
from clip_vl.losses.episode import EpisodeLoss
from clip_vl.losses.regression import byol_loss
from clip_vl.models.dual_build import average_weights, build_dual_encoder, build_updater, frozen_digest

MODEL_INPUTS = ("images", "images_2", "tokens", "teacher_features")


def objective(job, outputs, labels, rows, epoch, args):
    """{name: weighted loss} of a batch, from what the model made of it; rows are those of the episode."""
    student, teacher = ("image", "text") if args.teacher == "text" else ("text", "image")
    kind = "scores" if job.loss.needs_prototypes else "features"
    scales = {name: outputs.get(name) for name in ("logit_scale", "logit_bias")}
    aligned = job.loss(outputs[f"{student}_{kind}"], outputs[f"{teacher}_{kind}"], labels=labels, **scales)
    losses = {"loss_align": (args.w_clip if job.episode else args.w_align) * aligned}
    if args.w_simcse:
        losses["loss_simcse"] = args.w_simcse * simcse_loss(outputs["text_features"], outputs["text_features_2"])
    if args.BYOL:
        losses["loss_byol"] = byol_loss(outputs["image_features_2"], outputs["image_features"])
    if job.episode:
        projected = outputs["image_projected"], outputs["text_projected"]
        losses["loss_proto"] = 0 * (sum(map(torch.sum, projected)) + outputs["prototype_scale"])  # all parameters take part
        if has_prototypes(epoch, args) and job.episode.is_filled:
            weights = {"proto": args.w_proto, "proto_external": args.w_proto_external}
            for name, value in job.episode(*projected, rows, outputs["prototype_scale"]).items():
                losses[f"loss_{name}"] = weights[name] * value
    return losses


def has_prototypes(epoch, args):
    """Whether ProtoCLIP's prototypes count in this epoch: not while InfoNCE warms up, and not in LiT at the end."""
    return args.infonce_warmup_epoch <= epoch and not 0 <= args.lit_start_epoch <= epoch


def train_one_epoch(job, epoch, start, best, args):
    """The epoch's micro-batches from `start` on."""
    model, updater, batches = job.model.train(), job.updater, job.order.epoch(epoch)
    if args.dry_run:
        batches = batches[: args.gradient_accumulation_steps]
    loader = training_loader(job.train_set, epoch, batches[start:], job.damage, job.device, args)
    for done, batch in enumerate(loader, start + 1):
        is_last, in_this_update = job.accumulation(done, len(batches))
        inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
        chunks, seed_chunk = in_chunks(inputs, updater.micro_step, args)
        with updater.micro_batch(is_last):
            outputs = cached_forward(model, chunks, seed_chunk) if chunks else model(inputs)
            losses = objective(job, outputs, batch["labels"], batches[done - 1], epoch, args)
            updater.backward(sum(losses.values()), in_this_update)
            if chunks:
                cached_backward(model, chunks, outputs, seed_chunk)
        for name, value in losses.items():
            job.meters.add(name, value)
        job.report(epoch, total=True)
        if is_last:
            stop = job.step(lambda: [job.source.name(int(row)) for row in batch["rows"][:4]])  # noqa: B023
            bare(model).clamp_scales()
            if job.average:
                job.average.update_parameters(bare(model))
            job.save_if_due(stop, epoch=epoch, batch=done, best=best)


def in_chunks(inputs, step, args):
    """For GradCache: the batch in parts of --grad_cache pairs, and what keys their random draws; no parts without it."""

    def part(value, rows):
        return {name: part(each, rows) for name, each in value.items()} if isinstance(value, dict) else value[rows]

    size = len(next(value for value in inputs.values() if torch.is_tensor(value)))
    starts = range(0, size, args.grad_cache) if 0 < args.grad_cache < size else ()
    chunks = [part(inputs, slice(start, start + args.grad_cache)) for start in starts]
    return chunks, lambda i: torch.manual_seed(derive_seed(args.seed, "chunk", step, dist.rank(), i))


def start_episode(job, epoch, args):
    """ProtoCLIP: cluster what the model makes of the episode's pairs, in training augmentation and evaluation mode."""
    frequency = args.clustering_frequency
    if not job.episode or frequency < 1 or epoch % frequency or not has_prototypes(epoch, args):
        return
    rows = np.sort(np.concatenate(dist.gather(job.order.epoch(epoch).ravel())))
    unique, copies = np.unique(rows, return_counts=True)
    mine = shares(unique, args.batch_size, dist.rank(), dist.world_size())
    model, projected = dist.unwrap(job.model).eval(), {}

    def batches():
        loader = training_loader(job.train_set, epoch, mine, job.damage, job.device, args)
        yield from zip(mine, job.until_stopped(loader))

    def encode(batch):
        outputs = model({name: batch[name] for name in MODEL_INPUTS if name in batch})
        return torch.cat([outputs["image_projected"], outputs["text_projected"]], dim=1)

    both = collect(encode, batches(), autocast(job.device, args)).repeat_interleave(torch.from_numpy(copies), dim=0)
    projected = both.chunk(2, dim=1)
    job.episode.fill(rows, *projected, seed=derive_seed(args.seed, "k-means", epoch))


def evaluate(model, source, crop, device, args, watched=iter):
    """Recall of held-out pairs: (metrics, image features, text features, image_of_text, rows of the images)."""
    model.eval()
    rows, numbers, image_of_text = retrieval_items(source)
    precision = autocast(device, args)

    def features(dataset, wanted, encode):
        mine = shares(np.arange(len(wanted)), args.batch_size, dist.rank(), dist.world_size())
        loader = evaluation_loader(dataset, [wanted[part] for part in mine], device, args)
        return collect(encode, zip(mine, watched(loader)), precision)

    images = features(ImagesOf(source, crop), rows, lambda batch: model.encode_image(batch["images"]))
    texts = features(TextsOf(source, model.tokenizer), numbers, lambda batch: model.encode_text(batch["tokens"]))
    return retrieval_metrics(images, texts, image_of_text), images, texts, image_of_text, rows
