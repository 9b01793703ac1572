"""The dual encoder: train any image tower with any text tower, head and loss on pairs of images and captions.

    python -m clip_vl.align --output snap/align/NAME --train_data pairs.csv --image_model RN50 --text_model RN50
    bash scripts/align.bash 0,1,2,3 NAME 9590 4 --train_data pairs.csv --loss SEED --lock_text_model ...  four GPUs
    python -m clip_vl.align ... --lock_text_model --cache_teacher    encode the locked tower once, train without it

Writes epoch_N.pt, resumable checkpoints, log.jsonl, result.json and report.html; with --valid_data also recall at 1, 5
and 10 of held-out pairs. CLIP (arXiv:2103.00020), LiT (2111.07991), SEED (2101.04731), CompRess (2010.14713), ProtoCLIP
(2206.10996), SigLIP (2303.15343) and the others of `--loss` differ in flags alone; scripts/recipes/ has them.
"""

from dataclasses import asdict, dataclass

from clip_vl.flags.captions import PairFlags, encoder_of
from clip_vl.flags.dual import (
    DualOptimFlags,
    ImageTrainingFlags,
    PublishedRunFlags,
    SharedTowerFlags,
    TextTrainingFlags,
    recalled,
    name_output,
    tower_readers,
    warn_of_name,
    warn_of_unused,
)
from clip_vl.flags.losses import LossFlags, ProtoCLIPFlags, loss_readers
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.run import RunFlags


@dataclass
class AlignFlags(
    RunFlags,
    PairFlags,
    ImageTrainingFlags,
    TextTrainingFlags,
    SharedTowerFlags,
    LossFlags,
    ProtoCLIPFlags,
    DualOptimFlags,
    PublishedRunFlags,
):
    """Dual encoder"""

    num_workers: int = flag(0, "Loader workers of each process.", "--numWorkers", "--workers", at_least=0)
    episode_size: int = flag(
        0, "Number of pairs drawn for an epoch; 0 for plain epochs over all of them.", at_least=0
    )
    episode_sampling: str = flag(
        "replacement",
        "Sampling of an episode; with replacement, as published, some pairs come twice.",
        choices=["replacement", "permutation"],
    )
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
    retrieval_frequency: int = flag(
        1, "Epochs between two evaluations of --valid_data; 0 for the last epoch only.", "--retrieval_eval_frequency"
    )
    eval_first: bool = flag(False, "Evaluate --valid_data before training as well.")


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
from clip_vl.encoding.encode import ImagesOf, TextsOf, collect, shares
from clip_vl.encoding.held_out import HeldOutPairs
from clip_vl.engine import dist
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import UserError
from clip_vl.engine.optim import autocast
from clip_vl.engine.random import derive_seed
from clip_vl.engine.run import open_run
from clip_vl.evaluation.recall import retrieval_metrics
from clip_vl.losses.alignment import build_loss, loss_class
from clip_vl.losses.episode import EpisodeLoss, read_external
from clip_vl.losses.grad_cache import cached_backward, cached_forward, in_chunks
from clip_vl.models.dual.build import (
    average_weights,
    build_dual_encoder,
    build_tower,
    frozen_digest,
    prepare_training,
)
from clip_vl.models.dual.encoder import CachedTower
from clip_vl.models.dual.optim import build_optimizers, protoclip_schedules
from clip_vl.models.dual.settings import dual_settings
from clip_vl.models.dual.sides import ImageSide
from clip_vl.models.dual.spec import LossNeeds, Projection
from clip_vl.models.loading.settings import as_record
from clip_vl.reports.answers import retrieval_gallery
from clip_vl.reports.page import write_report

TEACHER_BLOCK = 4096  # rows of the teacher cache that a killed process can lose
MODEL_INPUTS = ("images", "images_2", "tokens", "teacher_features")


def objective(alignment, episode, outputs, labels, rows, epoch, args):
    """{name: weighted loss} of a batch, from what the model made of it; rows are those of the episode.

    alignment: the loss of --loss;  episode: ProtoCLIP's, or None
    """
    student, teacher = ("image", "text") if args.teacher == "text" else ("text", "image")
    kind = "scores" if alignment.needs_prototypes else "features"
    scales = {name: outputs.get(name) for name in ("logit_scale", "logit_bias")}
    aligned = alignment(outputs[f"{student}_{kind}"], outputs[f"{teacher}_{kind}"], labels=labels, **scales)
    with_prototypes = episode and has_prototypes(epoch, args)
    weight = (args.w_clip if with_prototypes else 1.0) if episode else args.w_align  # InfoNCE alone weighs 1
    losses = {"loss_align": weight * aligned}
    if args.w_simcse:
        from clip_vl.losses.contrastive import simcse_loss

        losses["loss_simcse"] = args.w_simcse * simcse_loss(outputs["text_features"], outputs["text_features_2"])
    if args.BYOL:
        from clip_vl.losses.regression import byol_loss

        losses["loss_byol"] = byol_loss(outputs["image_features_2"], outputs["image_features"])
    if episode:
        projected = outputs["image_projected"], outputs["text_projected"]
        losses["loss_proto"] = 0 * (sum(map(torch.sum, projected)) + outputs["prototype_scale"])  # they take part
        if with_prototypes and episode.is_filled:
            weights = {"proto": args.w_proto, "proto_external": args.w_proto_external}
            for name, value in episode(*projected, rows, outputs["prototype_scale"]).items():
                losses[f"loss_{name}"] = weights[name] * value
    return losses


def has_prototypes(epoch, args):
    """Whether ProtoCLIP's prototypes count in this epoch, from 0: not while InfoNCE warms up, nor in LiT at the end."""
    is_lit = args.lit_start_epoch > 0 and epoch >= args.lit_start_epoch - 1
    return args.infonce_warmup_epoch <= epoch and not is_lit


def clusters_in(epoch, args):
    """Whether prototypes are made at the start of this epoch: they serve until the next clustering."""
    frequency = args.clustering_frequency
    served = range(epoch, epoch + frequency)
    return frequency >= 1 and epoch % frequency == 0 and any(has_prototypes(later, args) for later in served)


def chunk_seeds(step, args):
    """What keys the random draws of a chunk of GradCache, the same in both of its passes."""
    return lambda chunk: torch.manual_seed(derive_seed(args.seed, "chunk", step, dist.rank(), chunk))


def start_episode(run, episode, rows, load, args):
    """ProtoCLIP: cluster what the model makes of the episode's pairs, in training augmentation and evaluation mode.

    rows: (N, B), this process's;  load: (epoch, rows) -> their batches
    """
    if not episode or run.batch or not clusters_in(run.epoch, args):
        return
    rows = np.sort(np.concatenate(dist.gather(rows.ravel())))
    unique, copies = np.unique(rows, return_counts=True)
    mine = shares(unique, args.batch_size, dist.rank(), dist.world_size())
    model = dist.unwrap(run.updater.model).eval()

    def encode(batch):
        outputs = model({name: batch[name] for name in MODEL_INPUTS if name in batch})
        return torch.cat([outputs["image_projected"], outputs["text_projected"]], dim=1)

    batches = zip(mine, load(run.epoch, mine))
    both = collect(encode, batches, autocast(run.device, args.bf16, args.fp16))
    projected = both.repeat_interleave(torch.from_numpy(copies), dim=0).chunk(2, dim=1)
    episode.fill(rows, *projected, seed=derive_seed(args.seed, "k-means", run.epoch))


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
    projection = Projection(args.projection_n_layers, args.projection_hidden_dim, args.projection_dim)
    needs = LossNeeds(
        scale=kind.needs_scale,
        bias=kind.needs_bias,
        prototypes=args.num_prototypes if kind.needs_prototypes else 0,
        projection=projection if args.add_projection_head else None,
        two_texts=args.w_simcse > 0,
        one_way=args.teacher if kind.uni_directional and not (args.teacher == "text" and args.w_simcse) else None,
    )
    model = build_dual_encoder(args.towers(), needs, cached)
    width = model.image_head.width
    if args.loss.lower() == "crossentropy" and width < source.num_classes:
        raise UserError(
            f"the heads are {width} wide, the training data have {source.num_classes} classes: give both towers "
            f"a head of --joint_projection_dim {source.num_classes}"
        )
    return model, build_loss(
        args.loss, width, variant=args.loss_variant, queue_size=args.queue_size, sinkhorn=args.sinkhorn,
        n_prototypes=args.num_prototypes, teacher_temperature=args.dino_teacher_temp, w_rkd_d=args.w_rkd_d,
        w_rkd_a=args.w_rkd_a, seed=args.seed,
    )  # fmt: skip


def build_episode(order, source, device, args):
    """ProtoCLIP's loss, with --add_projection_head."""
    if not args.add_projection_head:
        return None
    external = read_external(args.external_teacher, len(source)) if args.external_teacher else None
    pairs = len(order) * args.batch_size * dist.world_size()
    kmeans = {"iterations": args.kmeans_max_iter, "redo": args.kmeans_nredo}
    settings = {"pbt": args.PBT, "target_temperature": args.target_temperature, "kmeans": kmeans}
    return EpisodeLoss(pairs, args.k, args.projection_dim, external, **settings).to(device)


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
    alignment, episode = alignment.to(device), build_episode(order, source, device, args)
    average = average_weights(model, args.model_ema_decay).to(device) if args.model_ema else None
    samples, valid = open_data(source, held_out, model, cached, teachers, device, args)
    load = partial(training_loader, samples, damage=damage, device=device, args=args)

    model = prepare_training(model, args, device)
    optimizers = build_optimizers(model, args, protoclip_schedules(args, steps.updates_per_epoch(len(order))))
    stateful = {"loss": alignment, "episode": episode, "average": average}
    settings = dual_settings(asdict(args), model)
    words = settings.get("vocabulary")
    run.watch_data(**{"--text_vocab": words and digest_of(words)})
    updater = run.start(
        model, optimizers, steps, batches=len(order), name_of=source.name, moved=[alignment], settings=settings,
        beside={name: module for name, module in stateful.items() if module is not None and module.state_dict()},
    )  # fmt: skip
    if args.eval_first and valid and not updater.micro_step and not args.dry_run:
        metrics = retrieval_metrics(*valid.encode(dist.unwrap(updater.model)), valid.image_of_text)
        run.log(-1, **{f"valid_{name}": value for name, value in metrics.items()})

    for epoch in run.epochs():
        rows = order.epoch(epoch)
        if not args.dry_run:
            start_episode(run, episode, rows, load, args)
        for batch in run.batches(rows, load):
            inputs = {name: batch[name] for name in MODEL_INPUTS if name in batch}
            chunks, seed_chunk = in_chunks(inputs, args.grad_cache), chunk_seeds(updater.micro_step, args)
            with updater.forward():
                outputs = cached_forward(updater.model, chunks, seed_chunk) if chunks else updater.model(inputs)
                places = torch.from_numpy(rows[run.batch])
                losses = objective(alignment, episode, outputs, batch["labels"], places, epoch, args)
                updater.backward(sum(losses.values()))
                if chunks:
                    cached_backward(updater.model, chunks, outputs, seed_chunk)
            if updater.advance(losses):
                model.clamp_scales()
                if average:
                    average.update_parameters(model)
        run.save()
        measured = average.module if average else dist.unwrap(updater.model)
        is_last = epoch + 1 == steps.last_epoch
        if valid and (is_last or (args.retrieval_frequency > 0 and (epoch + 1) % args.retrieval_frequency == 0)):
            found = valid.encode(measured)
            metrics = retrieval_metrics(*found, valid.image_of_text)
            run.log(epoch, **{f"valid_{name}": value for name, value in metrics.items()})
            run.keep(metrics, gallery=partial(retrieval_gallery, valid, *found))
        if dist.rank() == 0 and (is_last or (epoch + 1) % args.save_frequency == 0):
            weights = {name: tensor.cpu().contiguous() for name, tensor in measured.state_dict().items()}
            content = {"epoch": epoch + 1, "name": run.folder.name, "state_dict": weights}
            save_plain(run.folder / f"epoch_{epoch + 1}.pt", content, as_record(settings))

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
    if dist.rank() == 0:
        warn_of_unused(args, readers)


def main(args):
    device = dist.setup()
    args = recalled(args)
    check_align_flags(args)
    name_output(args, "align")
    if dist.rank() == 0:
        warn_of_name(args)
    train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
