"""Pre-training of the fused encoder: masked words, image-text matching and, in stage two, answers to questions.

    python -m clip_vl.pretrain --output snap/pretrain/NAME --taskMaskLM --taskMatched ...          stage one
    python -m clip_vl.pretrain --load snap/pretrain/STAGE_ONE/Epoch09 --taskQA ...                 stage two
    bash scripts/pretrain.bash 0,1,2,3,4,5,6,7 NAME 9590 8 ...                                     eight GPUs

Reads LXMERT's annotation files and raw images (data/README.md); writes EpochNN_LXRT.pth with its optimizer files at
each epoch end, a resumable checkpoint every --checkpoint_steps updates, log.jsonl, result.json and report.html.
The system is CLIP-ViL (arXiv:2107.06383) on LXMERT's recipe (arXiv:1908.07490).
"""

from dataclasses import dataclass

from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, fused_settings
from clip_vl.flags.parser import flag, parse


@dataclass
class PretrainFlags(FusedEncoderFlags):
    """Pre-training tasks"""

    output: str = flag("snap/pretrain/test", "Run folder: settings, log, checkpoints, result and report.")
    train: str = flag("mscoco_train,mscoco_nominival,vgnococo", "Training files under <data_root>/lxmert.")
    valid: str = flag("mscoco_minival", "Validation files; '' for none.")
    task_mask_lm: bool = flag(False, "Predict masked words.", "--taskMaskLM")
    task_matched: bool = flag(False, "Tell matched sentences from exchanged ones.", "--taskMatched")
    task_qa: bool = flag(False, "Answer the questions.", "--taskQA")
    exchange_rate: float = flag(0.5, "Share of the sentences exchanged for another image's, for --taskMatched.")
    mask_matched_only: bool = flag(False, "No words asked of exchanged sentences (published: of them too).")
    word_mask_rate: float = flag(0.15, "Share of the words that are masked.", "--wordMaskRate")
    qa_sets: str | None = flag(None, "Answer sets (vqa, gqa, visual7w) to keep, separated by commas [all].", "--qaSets")
    not_load_scheduler: bool = flag(False, "With --load: start the schedule anew.")
    not_load_adam_optimizer: bool = flag(False, "With --load: start the optimizer of --optim anew.")
    task_obj_predict: bool = flag(False, "Predict what is at the regions; needs region features.", "--taskObjPredict")
    visual_losses: str = flag("obj,attr,feat", "What of it: objects, attributes, features.", "--visualLosses")
    obj_mask_rate: float = flag(0.0, "Share of the regions that are masked; images need 0.", "--objMaskRate")


FLAGS = parse(PretrainFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from pathlib import Path

import torch

from clip_vl.datasets.loader import DamageCount, evaluation_loader, training_loader
from clip_vl.datasets.lxmert.annotations import build_pretrain_annotations
from clip_vl.datasets.lxmert.answers import AnswerTable
from clip_vl.datasets.lxmert.batches import (
    eval_batches,
    open_images,
    say_skipped,
    size_file,
    split_paths,
    train_batches,
)
from clip_vl.datasets.lxmert.masking import mask_regions, mask_tokens
from clip_vl.datasets.lxmert.pretrain import PretrainDataset
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.dry_run import dry_run
from clip_vl.engine.errors import UserError
from clip_vl.engine.job import Job
from clip_vl.engine.meters import Meters
from clip_vl.engine.random import seed_step, torch_generator
from clip_vl.evaluation.answers import answer_report
from clip_vl.losses.pretraining import answer_loss, masked_lm_loss, matched_loss, region_losses
from clip_vl.models.fused.build import (
    bert_folder,
    build_encoder,
    build_updater,
    compile_parts,
    load_pretrained_parts,
    with_tower,
)
from clip_vl.models.fused.checkpoints import load_encoder, read_checkpoint, save_stage
from clip_vl.models.fused.encoder import VLPretrainer, visual_input
from clip_vl.models.fused.stage_optimizers import load_stage_optimizers
from clip_vl.models.fused.visual_tokens import Regions
from clip_vl.models.loading.weights import load_weights
from clip_vl.reports.page import write_report

REGION_OBJECTS, REGION_ATTRIBUTES = 1600, 400  # classes of the detector behind LXMERT's regions (Visual Genome)


def forward(model, batch, tokenizer, uniform, args):
    """One batch through the model -> outputs; losses, zero for a task without targets; the number of targets of each.

    uniform: (3, B, L) in [0, 1), the draws that decide which words are masked
    """
    rate = args.word_mask_rate if args.task_mask_lm else 0.0
    ids, mask = batch["input_ids"], batch["maskable"]
    input_ids, mlm_targets = mask_tokens(ids, mask, uniform, rate, tokenizer.mask_id, tokenizer.vocab_size)
    if args.mask_matched_only:  # the words stay masked: a sentence without masks would give its exchange away
        mlm_targets = mlm_targets.masked_fill(batch["matched"][:, None] != 1, -1)
    visual, image_of_text, regions, masked = show(batch, args)
    outputs = model(
        visual,
        input_ids,
        batch["attention_mask"],
        mlm_targets=mlm_targets,
        answer=batch["answer"],
        image_of_text=image_of_text,
        image_boxes=batch.get("image_boxes") if args.mask_padding else None,
    )
    match_targets = batch["matched"] if args.task_matched else torch.full_like(batch["matched"], -1)
    tasks = {
        "loss_mlm": (masked_lm_loss, outputs["mlm_logits"], outputs["mlm_targets"]),
        "loss_itm": (matched_loss, outputs["match_logits"], match_targets),
    }
    if args.task_qa:
        tasks["loss_qa"] = (answer_loss, outputs["answer_logits"], outputs["answer_targets"])
    outputs["match_targets"] = match_targets
    losses = {name: loss(logits, y, global_count(y, args)) for name, (loss, logits, y) in tasks.items()}
    counts = {name: (y >= 0).sum() for name, (_, _, y) in tasks.items()}
    if args.task_obj_predict:
        labels, confidences = ({n: batch[f"region_{n}{end}"][batch["image_of_text"]] for n in region_labels(args)}
                               for end in ("", "_conf"))  # fmt: skip
        count = global_count(regions.visible.long() - 1, args)  # every region is a target, -1 where there is none
        found = region_losses(outputs["regions"], regions.features, labels, confidences, masked, regions.visible, count)
        losses |= found
        counts |= dict.fromkeys(found, regions.visible.sum())
    return outputs, losses, counts


def show(batch, args):
    """What the model sees -> visual input; its row for each text; and the regions as they are, and which are masked.

    Each text has its image's regions for itself, masked by its own draws; with pixels or a grid there are none.
    """
    visual, image_of_text = visual_input(batch), batch["image_of_text"]
    if not isinstance(visual, Regions):
        return visual, image_of_text, None, None
    regions = Regions(*(part[image_of_text] for part in visual))
    features, masked = mask_regions(regions.features, regions.visible, batch["region_uniform"], args.obj_mask_rate)
    return regions._replace(features=features), None, regions, masked


def global_count(targets, args):
    """With --reduce_counts, the mean number of targets per process; None divides by this process's own."""
    if not args.reduce_counts:
        return None
    return dist.sum_over_ranks((targets >= 0).sum().float()) / dist.world_size()


def train_one_epoch(job, epoch, start, args):
    """The epoch's micro-batches from `start` on; updates every --gradient_accumulation_steps, and for what is left."""
    model, updater, batches = job.model.train(), job.updater, job.train_order.epoch(epoch)
    if args.dry_run or args.skip_training:
        batches = batches[: args.gradient_accumulation_steps if args.dry_run else 4]
    loader = training_loader(job.train_set, epoch, batches[start:], job.damage, job.device, args)
    for done, batch in enumerate(loader, start + 1):
        is_last, in_this_update = job.accumulation(done, len(batches))
        generator = torch_generator(args.seed, "mask", updater.micro_step, dist.rank(), device=job.device)
        uniform = torch.rand(3, *batch["input_ids"].shape, generator=generator, device=job.device)
        if "region_visible" in batch:
            shape = len(batch["input_ids"]), batch["region_visible"].shape[1]
            batch["region_uniform"] = torch.rand(3, *shape, generator=generator, device=job.device)
        with updater.micro_batch(is_last):
            _, losses, counts = forward(model, batch, job.tokenizer, uniform, args)
            updater.backward(sum(losses.values()), in_this_update)
        for name, loss in losses.items():  # a row of the log is a mean over targets and not over batches
            job.meters.add(name, loss, counts[name])
        job.report(epoch, total=True)
        if is_last:
            stop = job.step(lambda: [job.train_set.annotations.uid(int(row)) for row in batch["rows"][:4]])  # noqa: B023
            if args.save_step > 0 and updater.update % args.save_step == 0:
                stem = job.run.folder / f"Epoch{epoch + 1}Step{updater.update}"
                save_stage(stem, model, updater, fused_settings(args))
            job.save_if_due(stop, epoch=epoch, batch=done)


@torch.no_grad()
def evaluate(job, args):
    """Losses and accuracies over the validation split: masked words, matching, and answers by source (percent).

    Answers are asked of matched pairs; a prediction earns the annotators' score of its answer.
    """
    model, updater, valid = dist.unwrap(job.model).eval(), job.updater, job.valid_set.annotations
    meters, answered = Meters(job.device), []
    names = ["loss_mlm", "loss_itm", "mlm_accuracy", "matched_accuracy"] + ["loss_qa"] * args.task_qa
    for name in names + [f"loss_{name}" for name in region_tasks(args)]:
        meters.add(name, 0.0, 0.0)  # every rank needs every name, also one without a batch
    for batch in job.until_stopped(evaluation_loader(job.valid_set, job.valid_order, job.device, args)):
        with updater.autocast():
            outputs, losses, counts = forward(model, batch, job.tokenizer, batch["mask_uniform"], args)
        for name, loss in losses.items():
            meters.add(name, loss, counts[name])
        add_accuracy(meters, "mlm_accuracy", outputs["mlm_logits"], outputs["mlm_targets"])
        add_accuracy(meters, "matched_accuracy", outputs["match_logits"], outputs["match_targets"])
        if args.task_qa:
            rows = batch["rows"][batch["answer"].cpu() >= 0].tolist()
            answered += zip(rows, outputs["answer_logits"].argmax(1).tolist())
    return {f"valid_{name}": value for name, value in meters.means().items()} | qa_accuracy(valid, answered)


def add_accuracy(meters, name, logits, targets):
    known = targets >= 0
    correct = (logits.argmax(1) == targets) & known
    meters.add(name, 100 * correct.sum() / known.sum().clamp(min=1), known.sum())


def qa_accuracy(annotations, answered):
    """{valid_qa_accuracy...: percent}, overall and by source, from every rank's (row, predicted class) pairs."""
    answered = sorted(pair for pairs in dist.gather(answered) for pair in pairs)
    if not answered:
        return {}
    scores = [dict(zip(*map(list, annotations.answers(row)))).get(answer, 0.0) for row, answer in answered]
    sources = [annotations.sources[annotations.source[row]] for row, _ in answered]
    return {f"valid_qa_{name}": value for name, value in answer_report(scores, {"source": sources}).items()}


def region_tasks(args):
    """{loss: width of its prediction} of --visualLosses, {} without --taskObjPredict."""
    names = [name for name in args.visual_losses.split(",") if name] if args.task_obj_predict else []
    widths = {"obj": REGION_OBJECTS, "attr": REGION_ATTRIBUTES, "feat": args.region_dim}
    if unknown := set(names) - set(widths):
        raise UserError(f"--visualLosses {','.join(sorted(unknown))} is not among {', '.join(widths)}")
    return {name: widths[name] for name in names}


def region_labels(args):
    """{label: classes} of --visualLosses that a detector must have given to each region."""
    return {name: width for name, width in region_tasks(args).items() if name != "feat"}


def check_flags(args):
    """Refuse what cannot work, in one sentence, before anything is built."""
    check_fused_flags(args)
    region_tasks(args)
    if args.load_lxmert_qa:
        raise UserError("--loadLXMERTQA starts a fine-tuning; --load goes on with a pre-training, its answers included")
    if args.input_raw_images and (args.task_obj_predict or args.obj_mask_rate):
        raise UserError("--taskObjPredict and --objMaskRate are about a detector's regions: pass --no-input_raw_images")


def load_data(job, args):
    """The training and validation samples, their order, and the vocabularies of words and answers."""
    root = Path(args.data_root)
    job.tokenizer = load_tokenizer(bert_folder(args))
    job.answers = AnswerTable(root / "lxmert" / "all_ans.json", args.qa_sets.split(",") if args.qa_sets else None)
    images = open_images(args, region_labels=region_labels(args))

    def annotations(splits):
        return dist.first_rank_builds(
            lambda: build_pretrain_annotations(
                split_paths(args, "lxmert", splits),
                tokenizer=job.tokenizer,
                answer_table=job.answers,
                image_sizes=size_file(args),
                cache_root=root / "cache",
                limit_source=[source for source in args.limit_source.split(",") if source],
                max_length=args.max_length,
                skip_bad=args.skip_bad,
            )
        )

    train = say_skipped(annotations(args.train))
    job.train_set = PretrainDataset(train, images, args, exchange_rate=args.exchange_rate * args.task_matched)
    job.train_order = train_batches(train, args)
    job.watch_data(**{"--train": train.digests})
    job.damage = DamageCount(train, args)
    job.valid_set = None
    if args.valid:
        valid = say_skipped(annotations(args.valid))
        job.valid_set = PretrainDataset(
            valid, images, args, exchange_rate=args.exchange_rate * args.task_matched, evaluation=True
        )
        job.valid_order = eval_batches(valid, args)
        job.watch_data(**{"--valid": valid.digests})


def build_model(job, args):
    """The model on its device, with random, CLIP's and BERT's, or an earlier stage's weights."""
    state, path = read_checkpoint(args.load or args.load_lxmert)
    encoder = build_encoder(args, state)
    model = VLPretrainer(encoder, len(job.answers) if args.task_qa else 0, region_tasks(args))
    state = with_tower(state, path, encoder, args)
    if state is None:
        load_pretrained_parts(model, encoder, args)
    elif args.load:
        heads = {"answer_head.": args.task_qa, "obj_predict_head.": args.task_obj_predict}
        new = [head for head in heads if not any(name.startswith(head) for name in state)]
        ignore = [head for head, wanted in heads.items() if not wanted]
        load_weights(model, state, new=new, ignore=ignore, allow_partial=args.allow_partial, source=path)
    else:
        load_encoder(encoder, state, path, args)
    model.to(job.device, memory_format=torch.channels_last)
    if args.compile:
        compile_parts(model)
    return dist.wrap(model, job.device)


def main(args):
    device = dist.setup()
    check_flags(args)
    seed_step(args.seed, 0, 0)  # the same first weights on every rank
    job = Job("pretrain", args, device)
    load_data(job, args)
    job.model = build_model(job, args)
    updates_per_epoch = -(-len(job.train_order) // args.gradient_accumulation_steps)
    job.updater = build_updater(job.model, args, updates_per_epoch, device)
    if args.load:
        load_stage_optimizers(args.load, job.updater, args.not_load_adam_optimizer, args.not_load_scheduler)
    last_epoch = args.stop_after_epoch or args.epochs
    if args.dry_run:
        return dry_run(lambda: train_one_epoch(job, 0, 0, args), last_epoch * updates_per_epoch, device)
    position = job.restore() or {"epoch": args.start_epoch, "batch": 0}

    result = position.get("result", {})
    for epoch in range(position["epoch"], last_epoch):
        train_one_epoch(job, epoch, position["batch"] if epoch == position["epoch"] else 0, args)
        if job.valid_set is not None:
            job.save(epoch=epoch, batch=len(job.train_order), result=result)
            result = evaluate(job, args)
            job.log(epoch, **result)
        save_stage(job.run.folder / f"Epoch{epoch + 1:02d}", job.model, job.updater, fused_settings(args))
        job.save(epoch=epoch + 1, batch=0, result=result)

    scores_first = sorted(result, key=lambda name: ("qa_accuracy" not in name, "loss" in name))
    metrics = {name.removeprefix("valid_"): result[name] for name in scores_first}
    job.run.write_result(task="pretrain", split=args.valid, checkpoint=f"Epoch{last_epoch:02d}_LXRT.pth", **metrics)
    if dist.rank() == 0:
        print(f"report: {write_report(job.run.folder)}")


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
