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
from functools import partial
from pathlib import Path

import torch

from clip_vl.datasets.captions.protocols import Protocol, RetrievalPairs
from clip_vl.datasets.captions.sources import open_held_out, open_sources
from clip_vl.datasets.loader import DamagedPairs, training_loader
from clip_vl.datasets.lxmert.canvas_pairs import PicturesOf, score_texts
from clip_vl.datasets.lxmert.matching import MatchingDataset, image_sizes, whole_batches
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.run import open_run
from clip_vl.evaluation.retrieval_folds import Fold, metrics_of, rank_all_pairs
from clip_vl.losses.matching import matching_losses, pair_matrix
from clip_vl.models.fused.build import bert_folder, compile_parts
from clip_vl.models.fused.checkpoints import save_task, task_result
from clip_vl.models.fused.optim import build_optimizers
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


def evaluate(run, pairs, tokenizer, args):
    """(metrics, `Fold`) of the held-out pairs, every one of which is judged; an image by one of the processes."""
    fold = Fold(pairs, 0, min(args.valid_images or len(pairs.rows), len(pairs.rows)))
    model = copy.deepcopy(dist.unwrap(run.updater.model))  # the scorer takes it apart
    scorer = FusedScorer(model, args.mask_padding).eval()
    texts = [pairs.source.text(int(pairs.numbers[place])) for place in fold.texts]
    texts = tokenizer.encode(texts, args.max_length)
    images = PicturesOf(pairs.source, args.image_size_min, args.image_size_max)

    def score(batch):
        scores = score_texts(scorer, batch["picture"], texts, args.batch_size, run.device)
        return torch.from_numpy(scores)[None]

    encoder = dataclasses.replace(encoder_of(args, run.device), batch_size=1)  # an image with all texts
    scores = encoder.gathered(images, pairs.rows[fold.images], score).numpy()  # (N, M)
    rank_all_pairs(fold, pairs, lambda keys: scores)
    return metrics_of([fold]), fold


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    run, steps = open_run("finetune_retrieval", args.run(), device, write_report), args.steps()
    tokenizer, source = load_tokenizer(bert_folder(args)), open_sources(args.train_data, args.caption_options())
    damage = DamagedPairs(len(source), args, "its pairs count for nothing")
    sizes = image_sizes(source, Path(args.datasets_dir) / "cache")
    order = whole_batches(source, sizes, args)
    samples = MatchingDataset(source, sizes, tokenizer, args)
    load = partial(training_loader, samples, damage=damage, device=device, args=args)
    pairs = None
    if args.valid_data:
        protocol = Protocol(args.valid_data, args.valid_data)
        held_out = open_held_out(args.valid_data, args.caption_options())
        pairs = RetrievalPairs(held_out, protocol, args.captions_per_image)
    run.watch_data(**{"--train_data": source.digest, "--valid_data": pairs and pairs.source.digest})
    run.watch_data(vocabulary=tokenizer.digest)

    model = compile_parts(build_matcher(args, device), args.compile)
    optimizers = build_optimizers(model, args.optimizers(), steps.updates_per_epoch(len(order)))
    updater = run.start(model, optimizers, steps, batches=len(order), name_of=source.name)

    for epoch in run.epochs():
        rows = order.epoch(epoch)
        for batch in run.batches(rows, load, most=4 if args.skip_training else None):
            with updater.forward():
                losses = matching_losses(*judge_pairs(updater.model, batch, rows.shape[1], args))
                losses["loss_itm"] = args.w_matching * losses["loss_itm"]
                loss = losses["loss_nce"] + losses["loss_itm"]
            updater(loss, {"loss": loss, "train_accuracy": losses.pop("accuracy"), **losses})
        is_best = False
        if pairs is not None:
            run.save()
            metrics, fold = evaluate(run, pairs, tokenizer, args)
            run.log(epoch, **{f"valid_{name}": value for name, value in metrics.items()})
            is_best = run.keep(metrics, "mean_recall", partial(gallery_of, pairs, fold, GALLERY, "log-odds", args.seed))
        save_task(run.folder, model, is_best, fused_settings(args))
    run.finish(task="retrieval", split=args.valid_data, **task_result(run.best))


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
