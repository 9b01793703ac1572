"""NegCLIP: fine-tune a dual encoder with hard negative images and captions beside the pairs (arXiv:2210.01936).

    python -m clip_vl.mine_negatives --output data/coco/neg_train ...                         find them first
    python -m clip_vl.negclip --output snap/negclip/NAME --train_negatives data/coco/neg_train.tsv --load PRETRAINED ...
    bash scripts/negclip.bash 0 NAME 0 1 --train_negatives data/coco/neg_train.tsv --image_model ViT-B-32 ...    one GPU

A batch of B anchors has 2B images, each anchor's and that of one of its neighbours, and 4B texts: theirs, and a false
caption of each, which is one more column for every image and a query for none. Writes epoch_N.pt, best.pt by mean
recall of --valid_data, resumable checkpoints, log.jsonl, result.json and report.html.
"""

from dataclasses import asdict, dataclass, replace

from clip_vl.flags.captions import PairFlags, encoder_of
from clip_vl.flags.dual import recalled
from clip_vl.flags.dual_training import (
    DualOptimFlags,
    DualRunFlags,
    DualTowerFlags,
    tower_readers,
    warn_of_unused,
)
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.published import NEGCLIP


@dataclass
class NegCLIPFlags(DualRunFlags, PairFlags, DualTowerFlags, DualOptimFlags):
    """Hard negatives"""

    IGNORED = NEGCLIP
    train_negatives: str | None = flag(
        None, "Table of hard negatives from `python -m clip_vl.mine_negatives`, .tsv or .lmdb.", required=True
    )
    batch_size: int = flag(
        256, "Anchors per process: twice as many images, four times as many captions.", at_least=1
    )
    epochs: int = flag(5, "Passes over the table.", at_least=1)
    max_steps: int | None = flag(None, "Optimizer steps after which training and its schedule end.", at_least=1)
    lr: float = flag(1e-6, "Peak learning rate; published runs tried 1e-5, 5e-6 and 1e-6.", at_least=0)
    warmup: int = flag(50, "Steps of linear warm-up, at most those of the run; a cosine to 0 follows.", at_least=0)
    negative_texts: bool = flag(True, "Use negative captions; without negative captions and images it is plain CLIP.")
    negative_images: bool = flag(True, "Use the anchors' neighbours as negative images.")
    lora_r: int = flag(0, "Rank of the LoRA updates in the blocks of both towers; 0 trains the weights.", at_least=0)
    lora_alpha: float = flag(32, "Scale of the LoRA updates.")
    lora_dropout: float = flag(0.1, "Dropout before the LoRA updates.")


FLAGS = parse(NegCLIPFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from functools import partial
from pathlib import Path

from clip_vl.datasets.captions.episodes import PlainBatches
from clip_vl.datasets.captions.sources import open_held_out
from clip_vl.datasets.images.crops import eval_crop, train_crop
from clip_vl.datasets.loader import DamagedPairs, training_loader
from clip_vl.datasets.negatives.batches import NegativePairs, open_negatives
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.datasets.storage.file_digests import file_digest
from clip_vl.engine import dist
from clip_vl.engine.run import open_run
from clip_vl.evaluation.recall import retrieval_metrics
from clip_vl.losses.hard_negatives import hard_negative_loss
from clip_vl.models.dual.build import build_dual_encoder
from clip_vl.models.dual.optim import build_optimizers, one_schedule
from clip_vl.models.dual.settings import dual_settings
from clip_vl.models.dual.spec import LossNeeds
from clip_vl.models.dual.training import prepare_training, save_weights
from clip_vl.reports.answers import retrieval_gallery
from clip_vl.reports.page import write_report


def build_model(args):
    """The dual encoder, with LoRA where it is asked for."""
    model = build_dual_encoder(args.towers(), LossNeeds(scale=True))
    if args.lora_r:
        from clip_vl.models.dual.lora import add_lora

        trained = add_lora(model, args.lora_r, args.lora_alpha, args.lora_dropout)
        dist.print0(f"LoRA of rank {args.lora_r}: {trained:,} parameters train")
    return model


def state_of(model, lora_r):
    """The weights of the model, LoRA's updates added to them."""
    if not lora_r:
        return model.state_dict()
    from clip_vl.models.dual.lora import merged_state

    return merged_state(model)


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best by mean recall."""
    run, steps = open_run("negclip", args.run(), device, write_report), args.steps()
    table = open_negatives(args.train_negatives, args.images_dir)
    damage = DamagedPairs(len(table), args)
    model = build_model(args)
    kinds = {"texts": args.negative_texts, "images": args.negative_images}
    crop = train_crop(model.image_tower, args.augmentation, args.image_model_builder, args.image_crop)
    samples = NegativePairs(table, crop, model.tokenizer, args.seed, **kinds)
    load = partial(training_loader, samples, damage=damage, device=device, args=args)
    anchors = len(samples.anchors)
    if anchors < len(table):
        dist.print0(f"{len(table) - anchors} rows are no anchors: they or a neighbour have no negative caption")
    order = PlainBatches(anchors, args.batch_size, rank=dist.rank(), world_size=dist.world_size(), seed=args.seed)
    held_out = open_held_out(args.valid_data, args.caption_options())
    table_digest = file_digest(args.train_negatives, Path(args.datasets_dir) / "cache")
    run.watch_data(**{"--train_negatives": table_digest, "--valid_data": held_out and held_out.digest})
    valid = None
    if held_out:
        from clip_vl.encoding.held_out import HeldOutPairs

        crop = eval_crop(model.image_tower, args.image_crop)
        valid = HeldOutPairs(held_out, crop, model.tokenizer, encoder_of(args, device))

    model = prepare_training(model, device, sync_bn=args.use_bn_sync, compiled=args.compile)
    per_epoch = steps.updates_per_epoch(len(order))
    total = min(args.epochs * per_epoch, args.max_steps or 10**12)
    steps = replace(steps, last_epoch=min(args.stop_after_epoch or args.epochs, -(-total // per_epoch)))
    optimizers = build_optimizers(model, args.optimizer(), one_schedule(total, args.warmup))
    settings = dual_settings(asdict(args), model)
    words = settings.get("vocabulary")
    run.watch_data(**{"--text_vocab": words and digest_of(words)})
    updater = run.start(
        model, optimizers, steps, batches=len(order), updates=total, name_of=table.name, settings=settings
    )

    for epoch in run.epochs():
        left = max(0, total - epoch * per_epoch) * steps.accumulate  # the last epoch ends with --max_steps
        for batch in run.batches(samples.anchors[order.epoch(epoch)], load, most=left):
            with updater.forward():
                outputs = updater.model({"images": batch["images"], "tokens": batch["tokens"]})
                features = outputs["image_features"], outputs["text_features"]
                loss = hard_negative_loss(*features, outputs["logit_scale"], batch["image_ids"])
            if updater(loss, {"loss": loss}):
                model.clamp_scales()
        run.save()
        is_best, is_last = False, epoch + 1 == steps.last_epoch
        model = dist.unwrap(updater.model)
        if valid:
            found = valid.encode(model)
            metrics = retrieval_metrics(*found, valid.image_of_text)
            run.log(epoch, **{f"valid_{name}": value for name, value in metrics.items()})
            is_best = run.keep(metrics, "mean_recall", partial(retrieval_gallery, valid, *found))
        if is_last or (epoch + 1) % args.save_frequency == 0:
            save_weights(run.folder / f"epoch_{epoch + 1}.pt", epoch + 1, model, settings, state_of(model, args.lora_r))
        if is_best:
            save_weights(run.folder / "best.pt", epoch + 1, model, settings, state_of(model, args.lora_r))

    checkpoint = "best.pt" if run.best else f"epoch_{steps.last_epoch}.pt"
    run.finish(task="retrieval", split=args.valid_data, checkpoint=checkpoint, **run.best)


def main(args):
    device = dist.setup()
    args = recalled(args).in_folder("negclip")
    warn_of_unused(args, tower_readers(args))
    train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
