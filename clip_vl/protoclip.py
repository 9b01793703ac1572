"""ProtoCLIP: a dual encoder trained by InfoNCE and by prototypes of each episode (arXiv:2206.10996).

    python -m clip_vl.protoclip --output snap/protoclip/NAME --train_data pairs.csv --w_proto 1 --PBT ...
    bash scripts/protoclip.bash 0,1,2,3 NAME 9590 4 --train_data pairs.csv --w_proto 1 --PBT ...      four GPUs

At the start of an epoch the projected features of its pairs, images and captions apart, are clustered into --k
prototypes. Each side then predicts, beside InfoNCE, the prototype of the other side that its pair belongs to. The
epochs have phases: InfoNCE alone at first, prototypes, and at the end LiT, with the image tower frozen. Writes
epoch_N.pt, resumable checkpoints, log.jsonl, result.json and report.html. `align --add_projection_head` starts this
program.
"""

from dataclasses import asdict, dataclass

from clip_vl.flags.captions import PairFlags, encoder_of
from clip_vl.flags.dual import recalled
from clip_vl.flags.dual_training import (
    DualOptimFlags,
    DualRunFlags,
    DualTowerFlags,
    ValidationFlags,
    tower_readers,
    warn_of_unused,
)
from clip_vl.flags.losses import EpisodeFlags, PhaseFlags, ProtoCLIPFlags, prototype_readers
from clip_vl.flags.parser import parse


@dataclass
class TrainingFlags(
    DualRunFlags, PairFlags, DualTowerFlags, ProtoCLIPFlags, EpisodeFlags, PhaseFlags, DualOptimFlags, ValidationFlags
):
    """ProtoCLIP"""


FLAGS = parse(TrainingFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from functools import partial

import numpy as np
import torch

from clip_vl.datasets.captions.batches import AlignDataset
from clip_vl.datasets.captions.episodes import training_order
from clip_vl.datasets.captions.sources import open_held_out, open_sources
from clip_vl.datasets.images.crops import eval_crop, train_crop
from clip_vl.datasets.loader import DamagedPairs, training_loader
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.encoding.encode import collect, shares
from clip_vl.encoding.held_out import HeldOutPairs
from clip_vl.engine import dist
from clip_vl.engine.optim import autocast
from clip_vl.engine.random import derive_seed
from clip_vl.engine.run import open_run
from clip_vl.evaluation.recall import retrieval_metrics
from clip_vl.losses.contrastive import InfoNCE
from clip_vl.losses.episode import EpisodeLoss, read_external
from clip_vl.models.dual.build import build_dual_encoder
from clip_vl.models.dual.optim import build_optimizers
from clip_vl.models.dual.settings import dual_settings
from clip_vl.models.dual.spec import LossNeeds
from clip_vl.models.dual.training import prepare_training, save_weights
from clip_vl.reports.answers import retrieval_gallery
from clip_vl.reports.page import write_report


def objective(outputs, episode, rows, phases, epoch, weights):
    """{name: weighted loss} of a batch whose pairs are these rows of the episode.

    weights: {"clip", "proto", "proto_external": of InfoNCE and of both kinds of prototypes}; InfoNCE alone weighs 1
    """
    with_prototypes = phases.has_prototypes(epoch)
    features = outputs["image_features"], outputs["text_features"]
    info_nce = InfoNCE()(*features, logit_scale=outputs["logit_scale"])
    projected = outputs["image_projected"], outputs["text_projected"]
    losses = {"loss_align": (weights["clip"] if with_prototypes else 1.0) * info_nce}
    losses["loss_proto"] = 0 * (sum(map(torch.sum, projected)) + outputs["prototype_scale"])  # they take part
    if with_prototypes and episode.is_filled:
        for name, value in episode(*projected, rows, outputs["prototype_scale"]).items():
            losses[f"loss_{name}"] = weights[name] * value
    return losses


@torch.no_grad()
def fill_episode(episode, model, rows, load, precision, batch_size, seed):
    """Cluster the projected features of the episode's pairs, in training augmentation and evaluation mode.

    rows: (N, B), this process's;  load: rows of batches -> their batches
    """
    rows = np.sort(np.concatenate(dist.gather(rows.ravel())))
    unique, copies = np.unique(rows, return_counts=True)
    mine = shares(unique, batch_size, dist.rank(), dist.world_size())

    def encode(batch):
        outputs = model({"images": batch["images"], "tokens": batch["tokens"]})
        return torch.cat([outputs["image_projected"], outputs["text_projected"]], dim=1)

    both = collect(encode, zip(mine, load(mine)), precision)
    episode.fill(rows, *both.repeat_interleave(torch.from_numpy(copies), dim=0).chunk(2, dim=1), seed=seed)


def build_episode(pairs, source, args):
    """The loss of the prototypes of `pairs` pairs an episode, over all processes."""
    external = read_external(args.external_teacher, len(source)) if args.external_teacher else None
    kmeans = {"iterations": args.kmeans_max_iter, "redo": args.kmeans_nredo}
    options = {"pbt": args.PBT, "target_temperature": args.target_temperature, "kmeans": kmeans}
    return EpisodeLoss(pairs, args.k, args.projection_dim, external, **options)


def train(device, args):
    """Cluster and train each episode, evaluate, write epoch_N.pt."""
    run, steps, phases = open_run("protoclip", args.run(), device, write_report), args.steps(), args.phases()
    source = open_sources(args.train_data, args.caption_options())
    held_out = open_held_out(args.valid_data, args.caption_options())
    run.watch_data(**{"--train_data": source.digest, "--valid_data": held_out and held_out.digest})
    order = training_order(
        source, args.batch_size, episode_size=args.episode_size, sampling=args.episode_sampling,
        rank=dist.rank(), world_size=dist.world_size(), seed=args.seed,
    )  # fmt: skip
    model = build_dual_encoder(args.towers(), LossNeeds(scale=True, projection=args.projection()))
    episode = build_episode(len(order) * args.batch_size * dist.world_size(), source, args).to(device)
    crop = train_crop(model.image_tower, args.augmentation, args.image_model_builder, args.image_crop)
    samples = AlignDataset(source, crop, model.tokenizer, args.seed)
    view, encoder = eval_crop(model.image_tower, args.image_crop), encoder_of(args, device)
    valid = held_out and HeldOutPairs(held_out, view, model.tokenizer, encoder)
    load = partial(training_loader, samples, damage=DamagedPairs(len(source), args), device=device, args=args)

    model = prepare_training(model, device, sync_bn=args.use_bn_sync, compiled=args.compile)
    optimizers = build_optimizers(model, args.optimizer(), args.schedules(steps.updates_per_epoch(len(order))))
    settings = dual_settings(asdict(args), model)
    words = settings.get("vocabulary")
    run.watch_data(**{"--text_vocab": words and digest_of(words)})
    updater = run.start(model, optimizers, steps, batches=len(order), name_of=source.name, settings=settings,
                        beside={"episode": episode})  # fmt: skip
    precision = autocast(device, args.bf16, args.fp16)
    weights = {"clip": args.w_clip, "proto": args.w_proto, "proto_external": args.w_proto_external}

    if args.eval_first and valid and not updater.micro_step and not args.dry_run:
        metrics = retrieval_metrics(*valid.encode(dist.unwrap(updater.model)), valid.image_of_text)
        run.log(-1, **{f"valid_{name}": value for name, value in metrics.items()})
    for epoch in run.epochs():
        rows = order.epoch(epoch)
        if phases.clusters_in(epoch) and not run.batch and not args.dry_run:
            seed = derive_seed(args.seed, "k-means", epoch)
            fill_episode(episode, model.eval(), rows, partial(load, epoch), precision, args.batch_size, seed)
        for batch in run.batches(rows, load):
            with updater.forward():
                outputs = updater.model({"images": batch["images"], "tokens": batch["tokens"]})
                losses = objective(outputs, episode, torch.from_numpy(rows[run.batch]), phases, epoch, weights)
            if updater(sum(losses.values()), losses):
                model.clamp_scales()
        run.save()
        if valid and args.is_due(epoch, steps.last_epoch):
            found = valid.encode(dist.unwrap(updater.model))
            metrics = retrieval_metrics(*found, valid.image_of_text)
            run.log(epoch, **{f"valid_{name}": value for name, value in metrics.items()})
            run.keep(metrics, gallery=partial(retrieval_gallery, valid, *found))
        if epoch + 1 == steps.last_epoch or (epoch + 1) % args.save_frequency == 0:
            save_weights(run.folder / f"epoch_{epoch + 1}.pt", epoch + 1, dist.unwrap(updater.model), settings)
    run.finish(task="retrieval", split=args.valid_data, checkpoint=f"epoch_{steps.last_epoch}.pt", **run.best)


def main(args):
    device = dist.setup()
    args = recalled(args).in_folder("protoclip")
    warn_of_unused(args, tower_readers(args) | prototype_readers(args))
    train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
