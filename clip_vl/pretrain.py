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

from functools import partial
from pathlib import Path

import torch

from clip_vl.datasets.loader import DamageCount, evaluation_loader, training_loader
from clip_vl.datasets.lxmert.annotations import build_pretrain_annotations
from clip_vl.datasets.lxmert.answers import AnswerTable
from clip_vl.datasets.lxmert.batches import (
    eval_batches, open_images, say_skipped, size_file,
    split_paths, train_batches,
)  # fmt: skip
from clip_vl.datasets.lxmert.masking import mask_regions, mask_tokens
from clip_vl.datasets.lxmert.pretrain import PretrainDataset
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.meters import Meters
from clip_vl.engine.random import torch_generator
from clip_vl.engine.run import open_run
from clip_vl.evaluation.answers import answer_report
from clip_vl.losses.pretraining import answer_loss, masked_lm_loss, matched_loss, region_losses
from clip_vl.models.fused.build import (
    bert_folder, build_encoder, compile_parts,
    load_pretrained_parts, with_tower,
)  # fmt: skip
from clip_vl.models.fused.checkpoints import load_encoder, read_checkpoint, save_stage
from clip_vl.models.fused.encoder import VLPretrainer, visual_input
from clip_vl.models.fused.optim import build_optimizers
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


def draw_masks(batch, step, device, args):
    """The draws that decide what this rank masks in micro-batch `step`: words (3, B, L), and in `batch` the regions."""
    generator = torch_generator(args.seed, "mask", step, dist.rank(), device=device)
    uniform = torch.rand(3, *batch["input_ids"].shape, generator=generator, device=device)
    if "region_visible" in batch:
        shape = len(batch["input_ids"]), batch["region_visible"].shape[1]
        batch["region_uniform"] = torch.rand(3, *shape, generator=generator, device=device)
    return uniform


@torch.no_grad()
def evaluate(run, samples, tokenizer, args):
    """Losses and accuracies over the validation split: masked words, matching, and answers by source (percent).

    Answers are asked of matched pairs; a prediction earns the annotators' score of its answer.
    """
    model, updater = dist.unwrap(run.updater.model).eval(), run.updater
    meters, answered = Meters(run.device), []
    names = ["loss_mlm", "loss_itm", "mlm_accuracy", "matched_accuracy"] + ["loss_qa"] * args.task_qa
    for name in names + [f"loss_{name}" for name in region_tasks(args)]:
        meters.add(name, 0.0, 0.0)  # every rank needs every name, also one without a batch
    loader = evaluation_loader(samples, eval_batches(samples.annotations, args), run.device, args)
    for batch in loader:
        with updater.autocast():
            outputs, losses, counts = forward(model, batch, tokenizer, batch["mask_uniform"], args)
        for name, loss in losses.items():
            meters.add(name, loss, counts[name])
        add_accuracy(meters, "mlm_accuracy", outputs["mlm_logits"], outputs["mlm_targets"])
        add_accuracy(meters, "matched_accuracy", outputs["match_logits"], outputs["match_targets"])
        if args.task_qa:
            rows = batch["rows"][batch["answer"].cpu() >= 0].tolist()
            answered += zip(rows, outputs["answer_logits"].argmax(1).tolist())
    report = {f"valid_{name}": value for name, value in meters.means().items()}
    return report | qa_accuracy(samples.annotations, answered)


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
    report = answer_report(scores, {"source": [annotations.sources[annotations.source[row]] for row, _ in answered]})
    return {f"valid_qa_{name}": value for name, value in report.items()}


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
    if args.load_lxmert_qa:
        raise UserError("--loadLXMERTQA starts a fine-tuning; --load goes on with a pre-training, its answers included")
    check_fused_flags(args)
    region_tasks(args)
    if args.input_raw_images and (args.task_obj_predict or args.obj_mask_rate):
        raise UserError("--taskObjPredict and --objMaskRate are about a detector's regions: pass --no-input_raw_images")


def load_split(splits, tokenizer, answers, images, args, evaluation=False):
    """The samples of comma-separated splits, from the cache of their annotations."""
    annotations = dist.first_rank_builds(
        lambda: build_pretrain_annotations(
            split_paths(args, "lxmert", splits),
            tokenizer=tokenizer,
            answer_table=answers,
            image_sizes=size_file(args),
            cache_root=Path(args.data_root) / "cache",
            limit_source=[source for source in args.limit_source.split(",") if source],
            max_length=args.max_length,
            skip_bad=args.skip_bad,
        )
    )
    exchange_rate = args.exchange_rate * args.task_matched
    return PretrainDataset(say_skipped(annotations), images, args, exchange_rate=exchange_rate, evaluation=evaluation)


def build_model(answers, device, args):
    """The model on its device, with random, CLIP's and BERT's, or an earlier stage's weights."""
    state, path = read_checkpoint(args.load or args.load_lxmert)
    encoder = build_encoder(args, state)
    model = VLPretrainer(encoder, len(answers) if args.task_qa else 0, region_tasks(args))
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
    return compile_parts(model.to(device, memory_format=torch.channels_last), args.compile)


def train(device, args):
    """Pre-train, evaluate every epoch, write EpochNN_LXRT.pth."""
    run, steps = open_run("pretrain", args.run(), device, write_report), args.steps()
    tokenizer, root = load_tokenizer(bert_folder(args)), Path(args.data_root)
    answers = AnswerTable(root / "lxmert" / "all_ans.json", args.qa_sets.split(",") if args.qa_sets else None)
    vocabularies = tokenizer, answers, open_images(args, region_labels=region_labels(args))
    samples = load_split(args.train, *vocabularies, args)
    order, damage = train_batches(samples.annotations, args), DamageCount(samples.annotations, args)
    load = partial(training_loader, samples, damage=damage, device=device, args=args)
    valid = load_split(args.valid, *vocabularies, args, evaluation=True) if args.valid else None
    run.watch_data(**{"--train": samples.annotations.digests, "--valid": valid and valid.annotations.digests})

    model = build_model(answers, device, args)
    optimizers, first_update = build_optimizers(model, args.optimizers(), steps.updates_per_epoch(len(order))), 0
    if args.load:
        from clip_vl.models.fused.stage_optimizers import load_stage_optimizers

        skips = args.not_load_adam_optimizer, args.not_load_scheduler
        first_update = load_stage_optimizers(args.load, model, optimizers, *skips)
    starts = {"first_update": first_update, "name_of": samples.annotations.uid}
    updater = run.start(model, optimizers, steps, batches=len(order), **starts)

    for epoch in run.epochs():
        for batch in run.batches(order.epoch(epoch), load, most=4 if args.skip_training else None):
            uniform = draw_masks(batch, updater.micro_step, device, args)
            with updater.forward():
                _, losses, counts = forward(updater.model, batch, tokenizer, uniform, args)
            is_update = updater(sum(losses.values()), losses, counts)  # the log has means over targets, not batches
            if is_update and args.save_step > 0 and updater.update % args.save_step == 0:
                save_stage(run.folder / f"Epoch{epoch + 1}Step{updater.update}", model, updater, fused_settings(args))
        if valid is not None:
            run.save()
            report = evaluate(run, valid, tokenizer, args)
            run.log(epoch, **report)
            run.keep(report)
        save_stage(run.folder / f"Epoch{epoch + 1:02d}", model, updater, fused_settings(args))

    result = {name.removeprefix("valid_"): value for name, value in run.best.items() if name != "epoch"}
    names = sorted(result, key=lambda name: ("qa_accuracy" not in name, "loss" in name))  # scores first
    metrics, checkpoint = {name: result[name] for name in names}, f"Epoch{steps.last_epoch:02d}_LXRT.pth"
    run.finish(task="pretrain", split=args.valid, checkpoint=checkpoint, **metrics)


def main(args):
    device = dist.setup()
    check_flags(args)
    train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
