"""NegCLIP: fine-tune a dual encoder with hard negative images and captions beside the pairs (arXiv:2210.01936).

    python -m clip_vl.mine_negatives --output data/coco/neg_train ...                         find them first
    python -m clip_vl.negclip --output snap/negclip/NAME --train_negatives data/coco/neg_train.tsv --load PRETRAINED ...
    bash scripts/negclip.bash 0 NAME 0 1 --train_negatives data/coco/neg_train.tsv --image_model ViT-B-32 ...    one GPU

A batch of B anchors has 2B images, each anchor's and that of one of its neighbours, and 4B texts: theirs, and a false
caption of each, which is one more column for every image and a query for none. Writes epoch_N.pt, best.pt by mean
recall of --valid_data, resumable checkpoints, log.jsonl, result.json and report.html.
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
    warn_of_unused,
)
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.published import NEGCLIP
from clip_vl.flags.run import RunFlags


@dataclass
class NegCLIPFlags(
    RunFlags, PairFlags, ImageTrainingFlags, TextTrainingFlags, SharedTowerFlags, DualOptimFlags, PublishedRunFlags
):
    """Hard negatives"""

    IGNORED = NEGCLIP
    num_workers: int = flag(0, "Loader workers of each process.", "--numWorkers", "--workers", at_least=0)
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

from pathlib import Path

from clip_vl.datasets.captions.episodes import PlainBatches
from clip_vl.datasets.captions.sources import open_held_out
from clip_vl.datasets.images.crops import eval_crop, train_crop
from clip_vl.datasets.loader import DamagedPairs, training_loader
from clip_vl.datasets.negatives.batches import NegativePairs, open_negatives
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.datasets.storage.file_digests import file_digest
from clip_vl.engine import dist
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.dry_run import dry_run
from clip_vl.engine.errors import UserError
from clip_vl.engine.job import Job
from clip_vl.engine.optim import say_long_warmup, warmup_cosine
from clip_vl.evaluation.recall import retrieval_metrics
from clip_vl.losses.hard_negatives import hard_negative_loss
from clip_vl.models.dual.build import build_dual_encoder, prepare_training
from clip_vl.models.dual.lora import add_lora, merged_state
from clip_vl.models.dual.optim import build_updater
from clip_vl.models.dual.settings import dual_settings
from clip_vl.models.dual.spec import LossNeeds
from clip_vl.models.loading.settings import as_record
from clip_vl.reports.answers import retrieval_gallery
from clip_vl.reports.page import write_report


def train_one_epoch(job, epoch, start, best, args):
    """The epoch's micro-batches from `start` on, or as many as --max_steps leaves."""
    model, updater, batches = job.model.train(), job.updater, job.train_set.anchors[job.order.epoch(epoch)]
    batches = batches[: args.gradient_accumulation_steps] if args.dry_run else batches[: job.batches_left(epoch)]
    loader = training_loader(job.train_set, epoch, batches[start:], job.damage, job.device, args)
    for done, batch in enumerate(loader, start + 1):
        is_last, in_this_update = job.accumulation(done, len(batches))
        with updater.micro_batch(is_last):
            outputs = model({"images": batch["images"], "tokens": batch["tokens"]})
            features = outputs["image_features"], outputs["text_features"]
            loss = hard_negative_loss(*features, outputs["logit_scale"], batch["image_ids"])
            updater.backward(loss, in_this_update)
        job.meters.add("loss", loss)
        job.report(epoch)
        if is_last:
            stop = job.step(lambda: [job.table.name(int(row)) for row in batch["rows"][:4]])  # noqa: B023
            dist.bare(model).clamp_scales()
            job.save_if_due(stop, epoch=epoch, batch=done, best=best)


def build_model(args):
    """The dual encoder, with LoRA where it is asked for."""
    model = build_dual_encoder(args.towers(), LossNeeds(scale=True))
    if args.lora_r:
        learning = add_lora(model, args.lora_r, args.lora_alpha, args.lora_dropout)
        dist.print0(f"LoRA of rank {args.lora_r}: {learning:,} parameters learn")
    return model


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best by mean recall."""
    job = Job("negclip", args, device)
    job.table = open_negatives(args.train_negatives, args.images_dir)
    job.damage = DamagedPairs(len(job.table), args)
    model = build_model(args)
    kinds = {"texts": args.negative_texts, "images": args.negative_images}
    crop = train_crop(model.image_tower, args.augmentation, args.image_model_builder, args.image_crop)
    job.train_set = NegativePairs(job.table, crop, model.tokenizer, args.seed, **kinds)
    anchors = len(job.train_set.anchors)
    if anchors < len(job.table):
        dist.print0(f"{len(job.table) - anchors} rows are no anchors: they or a neighbour have no negative caption")
    job.order = PlainBatches(anchors, args.batch_size, rank=dist.rank(), world_size=dist.world_size(), seed=args.seed)
    held_out = open_held_out(args.valid_data, args.caption_options())
    table_digest = file_digest(args.train_negatives, Path(args.datasets_dir) / "cache")
    job.watch_data(**{"--train_negatives": table_digest, "--valid_data": held_out and held_out.digest})
    valid = None
    if held_out:
        from clip_vl.encoding.held_out import HeldOutPairs

        crop = eval_crop(model.image_tower, args.image_crop)
        valid = HeldOutPairs(held_out, crop, model.tokenizer, encoder_of(args, device))

    job.model = prepare_training(model, args, device)
    updates_per_epoch = -(-len(job.order) // args.gradient_accumulation_steps)
    total = min(args.epochs * updates_per_epoch, args.max_steps or 10**12)
    say_long_warmup(args.warmup, total)
    schedule = warmup_cosine(total, args.warmup)
    job.updater = build_updater(job.model, args, {"image": schedule, "text": schedule}, device)
    job.batches_left = lambda epoch: max(0, (total - epoch * updates_per_epoch) * args.gradient_accumulation_steps)
    last_epoch = min(args.stop_after_epoch or args.epochs, -(-total // updates_per_epoch))
    if args.dry_run:
        return dry_run(lambda: train_one_epoch(job, 0, 0, {}, args), total, device)
    job.settings = dual_settings(asdict(args), model)
    words = job.settings.get("vocabulary")
    job.watch_data(**{"--text_vocab": words and digest_of(words)})
    position = job.restore() or {"epoch": 0, "batch": 0, "best": {}}

    best = position["best"]
    for epoch in range(position["epoch"], last_epoch):
        train_one_epoch(job, epoch, position["batch"] if epoch == position["epoch"] else 0, best, args)
        job.save(epoch=epoch, batch=len(job.order), best=best)
        model, is_best = dist.unwrap(job.model), False
        if valid:
            found = valid.encode(model, job.until_stopped)
            metrics = retrieval_metrics(*found, valid.image_of_text)
            job.log(epoch, **{f"valid_{name}": value for name, value in metrics.items()})
            is_best = metrics["mean_recall"] > best.get("mean_recall", -1)
        if is_best:
            best = metrics | {"epoch": epoch + 1}
            job.write_gallery(lambda: retrieval_gallery(valid, *found))  # noqa: B023
        save_epoch(job, model, epoch, is_best, epoch + 1 == last_epoch or (epoch + 1) % args.save_frequency == 0)
        job.save(epoch=epoch + 1, batch=0, best=best)

    checkpoint = "best.pt" if best else f"epoch_{last_epoch}.pt"
    job.run.write_result(task="retrieval", split=args.valid_data, checkpoint=checkpoint, **best)
    if dist.rank() == 0:
        print(f"report: {write_report(job.run.folder)}")


def save_epoch(job, model, epoch, is_best, is_due):
    """Rank 0 writes epoch_N.pt and best.pt, LoRA's updates added to the weights."""
    if dist.rank() == 0 and (is_best or is_due):
        weights = {name: tensor.cpu().contiguous() for name, tensor in merged_state(model).items()}
        content = {"epoch": epoch + 1, "name": job.run.folder.name, "state_dict": weights}
        for name, wanted in ((f"epoch_{epoch + 1}.pt", is_due), ("best.pt", is_best)):
            if wanted:
                save_plain(job.run.folder / name, content, as_record(job.settings))


def main(args):
    device = dist.setup()
    args = recalled(args)
    if dist.rank() == 0:
        warn_of_unused(args, tower_readers(args))
    name_output(args, "negclip")
    if not args.train_negatives:
        raise UserError(
            "--train_negatives names the table of hard negatives: `python -m clip_vl.mine_negatives` makes it"
        )
    train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
