"""The dual encoder: train any image tower with any text tower, head and loss on pairs of images and captions.

    python -m clip_vl.align --output snap/align/NAME --train_data pairs.csv --image_model RN50 --text_model RN50
    bash scripts/align.bash 0,1,2,3 NAME 9590 4 --train_data pairs.csv --loss SEED --lock_text_model ...  four GPUs
    python -m clip_vl.align ... --lock_text_model --cache_teacher    encode the locked tower once, train without it

Writes epoch_N.pt, resumable checkpoints, log.jsonl, result.json and report.html; with --valid_data also recall at 1, 5
and 10 of held-out pairs. CLIP (arXiv:2103.00020), LiT (2111.07991), SEED (2101.04731), CompRess (2010.14713), SigLIP
(2303.15343) and the others of `--loss` differ in flags alone; scripts/recipes/ has them. --add_projection_head starts
`protoclip` instead.
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
    warn_of_name,
    warn_of_unused,
)
from clip_vl.flags.losses import EpisodeFlags, LossFlags, PhaseFlags, loss_readers
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.published import PROTOCLIP_ALONE


@dataclass
class AlignFlags(
    DualRunFlags, PairFlags, DualTowerFlags, LossFlags, EpisodeFlags, DualOptimFlags, PhaseFlags, ValidationFlags
):
    """Dual encoder"""

    MOVED = {"--add_projection_head": "clip_vl.protoclip"}
    IGNORED = PROTOCLIP_ALONE
    grad_cache: int = flag(
        0,
        "Pairs per forward pass (GradCache): the negatives are the whole batch, in the memory of a chunk.",
        at_least=0,
    )
    model_ema: bool = flag(False, "Keep an exponential moving average of the weights; evaluate and save the average.")
    model_ema_decay: float = flag(0.9999, "EMA decay per optimizer step.")
    cache_teacher: bool = flag(
        False, "Encode the dataset with the frozen tower once, and train without that tower in memory."
    )


FLAGS = parse(AlignFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from functools import partial
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.captions.batches import AlignDataset
from clip_vl.datasets.captions.episodes import training_order
from clip_vl.datasets.captions.sources import open_held_out, open_sources
from clip_vl.datasets.images.crops import eval_crop, train_crop
from clip_vl.datasets.loader import DamagedPairs, training_loader
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.datasets.storage.file_digests import file_digest
from clip_vl.encoding.encode import ImagesOf, TextsOf
from clip_vl.encoding.held_out import HeldOutPairs
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.run import open_run
from clip_vl.evaluation.recall import retrieval_metrics
from clip_vl.losses.alignment import build_loss, loss_class, pair_losses
from clip_vl.losses.grad_cache import GradCache
from clip_vl.models.dual.build import build_dual_encoder, build_tower, frozen_digest
from clip_vl.models.dual.encoder import CachedTower
from clip_vl.models.dual.optim import build_optimizers
from clip_vl.models.dual.settings import dual_settings
from clip_vl.models.dual.sides import ImageSide
from clip_vl.models.dual.spec import LossNeeds
from clip_vl.models.dual.training import average_weights, prepare_training, save_weights
from clip_vl.reports.answers import retrieval_gallery
from clip_vl.reports.page import write_report

TEACHER_BLOCK = 4096  # rows of the teacher cache that a killed process can lose
MODEL_INPUTS = ("images", "images_2", "tokens", "teacher_features")


def open_teacher(args, sources, device):
    """With --cache_teacher ({side of the locked tower: `CachedTower`}, its features of each source), else ({}, Nones).

    The tower is in memory only here, to encode what is not in the cache yet.
    """
    if not args.cache_teacher:
        return {}, [None for _ in sources]
    side = next((side for side in ("text", "image") if getattr(args, f"lock_{side}_model")), None)
    if side is None:
        raise UserError("--cache_teacher is for a locked tower: pass --lock_text_model or --lock_image_model")
    if side == "image" and (args.BYOL or args.augmentation not in (None, "none")):
        raise UserError("--cache_teacher keeps one view of each image: leave out --BYOL and --augmentation, or it")
    tower = build_tower(side, args.towers()).to(device).eval()
    vocabulary = args.text_vocab and file_digest(Path(args.text_vocab) / "vocab.txt", args.datasets_dir)
    of_images = side == "image"
    pixels = ImageSide(tower, torch.nn.Identity()) if of_images else None
    digest = pixels.digest if of_images else frozen_digest(tower)

    def encode(batch):
        return pixels.features(batch["images"]) if of_images else tower(batch["tokens"])

    def features_of(source):
        dataset = ImagesOf(source, eval_crop(tower, args.image_crop)) if of_images else TextsOf(source, tower.tokenizer)
        count = len(source) if of_images else source.num_texts
        described = f"{digest} {args.image_crop} {args.force_quick_gelu} {vocabulary}"
        return encoder_of(args, device).cached(dataset, np.arange(count), encode, source=source.digest, model=described,
                                               dtype="float16", block=TEACHER_BLOCK, skip_damaged=True)  # fmt: skip

    cached = CachedTower(tower.width, getattr(tower, "initial_logit_scale", None))
    return {side: cached}, [source and features_of(source) for source in sources]


def build_model(source, args, cached):
    """(model, loss): the model with what its losses want, and the loss of --loss."""
    kind = loss_class(args.loss)
    if kind.needs_labels and not source.num_classes:
        raise UserError(f"--loss {args.loss} needs labels: train on classification sets, or name --csv_label_key")
    needs = LossNeeds(
        scale=kind.needs_scale,
        bias=kind.needs_bias,
        prototypes=args.num_prototypes if kind.needs_prototypes else 0,
        two_texts=args.w_simcse > 0,
        one_way=args.teacher if kind.uni_directional and not (args.teacher == "text" and args.w_simcse) else None,
    )
    model = build_dual_encoder(args.towers(), needs, cached)
    width = model.image_head.width
    if args.loss == "CrossEntropy" and width < source.num_classes:
        raise UserError(
            f"the heads are {width} wide, the training data have {source.num_classes} classes: give both towers "
            f"a head of --joint_projection_dim {source.num_classes}"
        )
    return model, build_loss(
        args.loss, width, variant=args.loss_variant, queue_size=args.queue_size, sinkhorn=args.sinkhorn,
        n_prototypes=args.num_prototypes, teacher_temperature=args.dino_teacher_temp, w_rkd_d=args.w_rkd_d,
        w_rkd_a=args.w_rkd_a, seed=args.seed,
    )  # fmt: skip


def open_data(source, held_out, model, cached, teachers, device, args):
    """(training samples, held-out pairs); a side whose tower is cached brings its features instead of its input."""
    side = next(iter(cached), None)
    tower, train, evaluation = model.image_tower, None, None
    if side != "image":
        train = train_crop(tower, args.augmentation, args.image_model_builder, args.image_crop)
        evaluation = eval_crop(tower, args.image_crop)
    samples = AlignDataset(
        source, train, model.tokenizer, args.seed, views=1 + args.BYOL, teacher=teachers[0], teacher_of=side or "text"
    )
    if not held_out:
        return samples, None
    return samples, HeldOutPairs(held_out, evaluation, model.tokenizer, encoder_of(args, device), {side: teachers[1]})


def train(device, args):
    """Train, evaluate, write epoch_N.pt."""
    run, steps = open_run("align", args.run(), device, write_report), args.steps()
    source = open_sources(args.train_data, args.caption_options())
    damage = DamagedPairs(len(source), args)
    order = training_order(
        source, args.batch_size, episode_size=args.episode_size, sampling=args.episode_sampling,
        rank=dist.rank(), world_size=dist.world_size(), seed=args.seed,
    )  # fmt: skip
    held_out = open_held_out(args.valid_data, args.caption_options())
    run.watch_data(**{"--train_data": source.digest, "--valid_data": held_out and held_out.digest})
    cached, teachers = open_teacher(args, [source, held_out], device)
    model, alignment = build_model(source, args, cached)
    alignment = alignment.to(device)
    average = average_weights(model, args.model_ema_decay).to(device) if args.model_ema else None
    samples, valid = open_data(source, held_out, model, cached, teachers, device, args)
    load = partial(training_loader, samples, damage=damage, device=device, args=args)

    model = prepare_training(model, device, sync_bn=args.use_bn_sync, compiled=args.compile)
    optimizers = build_optimizers(model, args.optimizer(), args.schedules(steps.updates_per_epoch(len(order))))
    stateful = {"loss": alignment, "average": average}
    settings = dual_settings(asdict(args), model)
    words = settings.get("vocabulary")
    run.watch_data(**{"--text_vocab": words and digest_of(words)})
    updater = run.start(
        model, optimizers, steps, batches=len(order), name_of=source.name, moved=[alignment], settings=settings,
        beside={name: module for name, module in stateful.items() if module is not None and module.state_dict()},
    )  # fmt: skip
    passes = GradCache(updater.model, args.grad_cache, args.seed)
    if args.eval_first and valid and not updater.micro_step and not args.dry_run:
        metrics = retrieval_metrics(*valid.encode(dist.unwrap(updater.model)), valid.image_of_text)
        run.log(-1, **{f"valid_{name}": value for name, value in metrics.items()})

    for epoch in run.epochs():
        for batch in run.batches(order.epoch(epoch), load):
            inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
            with updater.forward():
                outputs = passes.forward(inputs, updater.micro_step)
                losses = pair_losses(
                    alignment, outputs, batch["labels"], teacher=args.teacher, weight=args.w_align,
                    w_simcse=args.w_simcse, byol=args.BYOL,
                )  # fmt: skip
                updater.backward(sum(losses.values()))
                passes.backward()
            if updater.advance(losses):
                model.clamp_scales()
                if average:
                    average.update_parameters(model)
        run.save()
        measured = average.module if average else dist.unwrap(updater.model)
        if valid and args.is_due(epoch, steps.last_epoch):
            found = valid.encode(measured)
            metrics = retrieval_metrics(*found, valid.image_of_text)
            run.log(epoch, **{f"valid_{name}": value for name, value in metrics.items()})
            run.keep(metrics, gallery=partial(retrieval_gallery, valid, *found))
        if epoch + 1 == steps.last_epoch or (epoch + 1) % args.save_frequency == 0:
            save_weights(run.folder / f"epoch_{epoch + 1}.pt", epoch + 1, measured, settings)

    run.finish(task="retrieval", split=args.valid_data, checkpoint=f"epoch_{steps.last_epoch}.pt", **run.best)


def check_align_flags(args):
    """Refuse what cannot work together, and name what was given for nothing."""
    if args.w_simcse and (args.lock_text_model or (args.cache_teacher and not args.lock_image_model)):
        raise UserError("--w_simcse needs a text tower that learns: two dropout masks of a locked one are the same")
    if not 0 <= args.model_ema_decay <= 1:
        raise UserError(f"--model_ema_decay {args.model_ema_decay} must be from 0 to 1")
    readers = tower_readers(args) | loss_readers(args)
    readers["model_ema_decay"] = (args.model_ema, "--model_ema")
    readers["episode_sampling"] = (args.episode_size, "--episode_size")
    warn_of_unused(args, readers)


def main(args):
    device = dist.setup()
    args = recalled(args).in_folder("align")
    check_align_flags(args)
    warn_of_name(args)
    train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
