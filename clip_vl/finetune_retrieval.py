"""Retrieval by the fused encoder: fine-tune its matching head to tell the pairs of a batch, InfoNCE and matching loss.

    python -m clip_vl.finetune_retrieval --load snap/pretrain/NAME/Epoch09 --train_data pairs.csv --valid_data ...
    bash scripts/finetune_retrieval.bash 0,1,2,3 NAME 9590 4 --load ... --train_data ...               four GPUs
    python -m clip_vl.retrieval --test ... --fused snap/finetune_retrieval/NAME/BEST --output ...      test

--train_data and --valid_data are captioned images in the forms that `align` reads. Each image is judged with its own
caption and with --negatives others of the batch, and each caption so with as many other images; the visual tower sees
an image once. After each epoch the recall of held-out pairs, all of which are judged; the checkpoint with the highest
mean is BEST.pth. Also writes LAST.pth, resumable checkpoints, log.jsonl, result.json and report.html. `probes --fused`
reads the checkpoints too. Dual encoders are fine-tuned by `align`.
"""

import dataclasses
from dataclasses import dataclass

from clip_vl.flags.captions import SourceFlags, encoder_of
from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, fused_settings
from clip_vl.flags.parser import flag, parse


@dataclass
class FinetuneFlags(FusedEncoderFlags, SourceFlags):
    """Retrieval"""

    output: str = flag("snap/finetune_retrieval/test", "Run folder: settings, log, checkpoints, result and report.")
    train_data: str | None = flag(None, "Training data, separated by commas, in the forms that `align` reads.")
    valid_data: str | None = flag(None, "Held-out pairs in the same forms; without them only LAST.pth is written.")
    valid_images: int = flag(100, "Held-out images that are judged, the first ones, with all captions; 0 for all.")
    captions_per_image: int | None = flag(None, "Only the first n captions of each held-out image [all].")
    batch_size: int = flag(32, "Images per process and micro-batch; negatives come from all processes.", "--batchSize")
    negatives: int = flag(7, "Captions of other images that each image is judged with, at most.")
    w_matching: float = flag(1.0, "Weight of the matching loss beside InfoNCE.")


FLAGS = parse(FinetuneFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import copy
from pathlib import Path

import torch

from clip_vl.datasets.captions.protocols import Protocol, RetrievalPairs
from clip_vl.datasets.captions.sources import open_held_out, open_sources
from clip_vl.datasets.loader import DamagedPairs, training_loader
from clip_vl.datasets.lxmert.canvas_pairs import PicturesOf, score_texts
from clip_vl.datasets.lxmert.matching import MatchingDataset, image_sizes, whole_batches
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.dry_run import dry_run
from clip_vl.engine.errors import UserError
from clip_vl.engine.job import Job
from clip_vl.engine.random import seed_step
from clip_vl.evaluation.retrieval_folds import Fold, metrics_of, rank_all_pairs
from clip_vl.losses.matching import matching_losses, pair_matrix
from clip_vl.models.fused.build import bert_folder, build_updater, compile_parts
from clip_vl.models.fused.checkpoints import save_task
from clip_vl.models.fused.scorer import FusedScorer, build_matcher, log_odds_of
from clip_vl.reports.page import write_report
from clip_vl.reports.retrieval import gallery_of

GALLERY = 24  # queries in the report
NOT_HERE = {  # flags of the data root's own tasks, which captioned images do not have
    "train": "use --train_data", "valid": "use --valid_data", "max_train_samples": "use --dataset_size",
    "max_eval_samples": "use --valid_images", "load_lxmert_qa": "use --loadLXMERT", "use_lmdb": "image files are read",
    "features": "the visual tower is trained on image files", "sentences_per_image": "an image comes with one caption",
    "skip_bad": "every row counts", "limit_source": "leave the source out of --train_data",
    "csv_label_key": "there are no classes", "save_step": "BEST.pth and LAST.pth are written after each epoch",
    "reduce_counts": "losses are always those of the pairs of all processes",
}  # fmt: skip


def judge_pairs(model, batch, G, args):
    """(G, G) log-odds of the pairs of a batch of all processes, -inf where there is none; bool (G,) usable images."""
    P, none = len(batch["image_of_text"]), torch.full_like(batch["input_ids"], -1)
    outputs = model(
        batch["images"],
        batch["input_ids"],
        batch["attention_mask"],
        mlm_targets=none,
        answer=none.new_full((P,), -1),
        image_of_text=batch["image_of_text"],
        image_boxes=batch["image_boxes"] if args.mask_padding else None,
    )
    log_odds, places = log_odds_of(outputs["match_logits"]), (batch["image_of_text"], batch["text_of_pair"])
    mine = pair_matrix(log_odds, *places, (len(batch["usable"]), G))
    return dist.all_gather(mine), dist.gather_rows(batch["usable"].int()).bool()


def train_one_epoch(job, epoch, start, best, args):
    """The epoch's micro-batches from `start` on; updates every --gradient_accumulation_steps, and for what is left."""
    model, updater, batches = job.model.train(), job.updater, job.order.epoch(epoch)
    if args.dry_run or args.skip_training:
        batches = batches[: args.gradient_accumulation_steps if args.dry_run else 4]
    loader = training_loader(job.train_set, epoch, batches[start:], job.damage, job.device, args)
    for done, batch in enumerate(loader, start + 1):
        is_last, in_this_update = job.accumulation(done, len(batches))
        with updater.micro_batch(is_last):
            losses = matching_losses(*judge_pairs(model, batch, batches.shape[1], args))
            losses["loss_itm"] = args.w_matching * losses["loss_itm"]
            loss = losses["loss_nce"] + losses["loss_itm"]
            updater.backward(loss, in_this_update)
        for name, value in {"loss": loss, **losses}.items():
            job.meters.add({"accuracy": "train_accuracy"}.get(name, name), value)
        job.report(epoch)
        if is_last:
            stop = job.step(lambda: [job.source.name(int(row)) for row in batch["rows"][:4]])  # noqa: B023
            job.save_if_due(stop, epoch=epoch, batch=done, best=best)


def evaluate(job, pairs, tokenizer, args):
    """(metrics, `Fold`) of the held-out pairs, every one of which is judged; an image by one of the processes."""
    fold = Fold(pairs, 0, min(args.valid_images or len(pairs.rows), len(pairs.rows)))
    scorer = FusedScorer(copy.deepcopy(dist.unwrap(job.model)), args.mask_padding).eval()  # it takes the model apart
    texts = [pairs.source.text(int(pairs.numbers[place])) for place in fold.texts]
    texts = tokenizer.encode(texts, args.max_length)
    images = PicturesOf(pairs.source, args.image_size_min, args.image_size_max)

    def score(batch):
        scores = score_texts(scorer, batch["picture"], texts, args.batch_size, job.device)
        return torch.from_numpy(scores)[None]

    encoder = dataclasses.replace(encoder_of(args, job.device), batch_size=1)  # an image with all texts
    scores = encoder.gathered(images, pairs.rows[fold.images], score, job.until_stopped).numpy()  # (N, M)
    rank_all_pairs(fold, pairs, lambda keys: scores)
    return metrics_of([fold]), fold


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    seed_step(args.seed, 0, 0)  # the same first weights on every rank
    job, pairs = Job("finetune_retrieval", args, device), None
    tokenizer = load_tokenizer(bert_folder(args))
    job.source = open_sources(args.train_data, args.caption_options())
    job.damage = DamagedPairs(len(job.source), args, "its pairs count for nothing")
    sizes = image_sizes(job.source, Path(args.datasets_dir) / "cache")
    job.order = whole_batches(job.source, sizes, args)
    job.train_set = MatchingDataset(job.source, sizes, tokenizer, args)
    if args.valid_data:
        protocol = Protocol(args.valid_data, args.valid_data)
        held_out = open_held_out(args.valid_data, args.caption_options())
        pairs = RetrievalPairs(held_out, protocol, args.captions_per_image)
    job.watch_data(**{"--train_data": job.source.digest, "--valid_data": pairs and pairs.source.digest})
    job.watch_data(vocabulary=tokenizer.digest)

    model = build_matcher(args, device)
    if args.compile:
        compile_parts(model)
    job.model = dist.wrap(model, device)
    updates_per_epoch = -(-len(job.order) // args.gradient_accumulation_steps)
    job.updater = build_updater(job.model, args, updates_per_epoch, device)
    last_epoch = args.stop_after_epoch or args.epochs
    if args.dry_run:
        return dry_run(lambda: train_one_epoch(job, 0, 0, {}, args), last_epoch * updates_per_epoch, device)
    position = job.restore() or {"epoch": args.start_epoch, "batch": 0, "best": {}}

    best = position["best"]
    for epoch in range(position["epoch"], last_epoch):
        train_one_epoch(job, epoch, position["batch"] if epoch == position["epoch"] else 0, best, args)
        is_best = False
        if pairs is not None:
            job.save(epoch=epoch, batch=len(job.order), best=best)
            metrics, fold = evaluate(job, pairs, tokenizer, args)
            job.log(epoch, **{f"valid_{name}": value for name, value in metrics.items()})
            is_best = metrics["mean_recall"] > best.get("mean_recall", -1)
        if is_best:
            best = metrics | {"epoch": epoch + 1}
            job.write_gallery(lambda: gallery_of(pairs, fold, GALLERY, "log-odds", args.seed))  # noqa: B023
        save_task(job.run.folder, model, is_best, fused_settings(args))
        job.save(epoch=epoch + 1, batch=0, best=best)

    checkpoint = "BEST.pth" if best else "LAST.pth"
    job.run.write_result(task="retrieval", split=args.valid_data, checkpoint=checkpoint, **best)
    if dist.rank() == 0:
        print(f"report: {write_report(job.run.folder)}")


def check_flags(args):
    """Refuse what cannot work, in one sentence, before anything is built."""
    defaults = {field.name: field.default for field in dataclasses.fields(args)}
    for name, instead in NOT_HERE.items():
        if getattr(args, name) != defaults[name]:
            raise UserError(f"--{name} is not for captioned images: {instead}")
    if not (args.input_raw_images or args.load or args.load_lxmert):
        raise UserError("retrieval needs a model that sees images: pass --input_raw_images")
    if args.load and args.load_lxmert:
        raise UserError("--load and --loadLXMERT both name the weights to start from: leave out one of them")
    check_fused_flags(args)
    if args.batch_size * dist.world_size() < 2 or args.negatives < 1:
        raise UserError(
            f"--batch_size {args.batch_size} with --negatives {args.negatives} leaves an image no caption of others: "
            "pass at least 2 and 1"
        )
    if args.w_matching < 0 or args.valid_images < 0:
        raise UserError(f"--w_matching {args.w_matching} and --valid_images {args.valid_images} are numbers from 0 up")
    if args.captions_per_image is not None and args.captions_per_image < 1:
        raise UserError(f"--captions_per_image {args.captions_per_image} must be at least 1")


def main(args):
    device = dist.setup()
    check_flags(args)
    train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
