"""GQA: fine-tune the fused encoder on compositional questions, evaluate it every epoch, write the submission file.

    python -m clip_vl.gqa --output snap/gqa/NAME --loadLXMERTQA snap/pretrain/NAME/Epoch11 ...     fine-tune
    python -m clip_vl.gqa --output snap/gqa/NAME --load snap/gqa/NAME/BEST --test testdev ...      score testdev
    bash scripts/finetune_gqa.bash 0,1,2,3 NAME 9590 4 ...                                         four GPUs

Reads data/gqa (data/README.md). Training writes BEST.pth and LAST.pth, resumable checkpoints, log.jsonl, result.json
and report.html; --test testdev or submit writes <split>_predict.json, the form that the server takes. The score is
exact match in percent, over all questions and over open and yes/no-or-choice ones apart (arXiv:1902.09506).
"""

from dataclasses import dataclass

from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, check_test_flags, fused_settings
from clip_vl.flags.parser import flag, parse


@dataclass
class GQAFlags(FusedEncoderFlags):
    """GQA"""

    output: str = flag("snap/gqa/test", "Run folder: settings, log, checkpoints, result and report.")
    train: str = flag("train,valid", "Training files under <data_root>/gqa.")
    valid: str = flag("testdev", "Validation file; '' for none, and then only LAST.pth is written.")
    test: str | None = flag(
        None, "Only answer this split (testdev, submit, ...) with --load and write its submission file."
    )
    loss_scale: int = flag(1, "Factor of the loss; 1 means the number of answers (LXMERT's convention).")
    mce_loss: bool = flag(
        False, "Cross entropy over the answers instead of one binary one for each, times --loss_scale; CLIP-ViL's code "
               "multiplies by the number of answers as well.", "--mceLoss",
    )  # fmt: skip
    question_only: bool = flag(False, "Train and test without images: what the questions alone give away.")


FLAGS = parse(GQAFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from functools import partial
from pathlib import Path

from clip_vl.datasets.images.collections import GQA
from clip_vl.datasets.loader import DamageCount, evaluation_loader, training_loader
from clip_vl.datasets.lxmert.answers import AnswerTable, read_label_vocab
from clip_vl.datasets.lxmert.batches import eval_batches, open_images, split_paths, train_batches
from clip_vl.datasets.lxmert.vqa import VQADataset, load_questions
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.optim import autocast
from clip_vl.engine.run import open_run
from clip_vl.evaluation.answers import answer_report, batch_accuracy, headlines, majority_accuracy, predict, soft_scores
from clip_vl.losses.answering import single_answer_loss, soft_answer_loss
from clip_vl.models.fused.build import bert_folder, build_classifier, compile_parts
from clip_vl.models.fused.checkpoints import load_answer_head, save_task, task_result
from clip_vl.models.fused.encoder import classify
from clip_vl.models.fused.optim import build_optimizers
from clip_vl.reports.answers import build_gallery
from clip_vl.reports.page import write_report


def answering_loss(logits, scores, usable, args):
    """Over the questions whose answer is a class: binary cross entropy per answer, or with --mceLoss one over all.

    With --mceLoss CLIP-ViL's code multiplies by the number of answers first and then by --loss_scale, or by the number
    again: with 1,842 answers that many times this loss, and --max_grad_norm clips the gradient of almost every step.
    """
    usable = usable & (scores.sum(1) > 0)
    if not args.mce_loss:
        return soft_answer_loss(logits, scores, args.loss_scale, usable)
    scale = logits.shape[1] if args.loss_scale == 1 else args.loss_scale
    return single_answer_loss(logits, scores.argmax(1), usable) * scale


def build_model(answers, device, args):
    """The classifier; with --loadLXMERTQA its answer head starts from the pre-training head's rows of the same text."""
    model, state, path = build_classifier(len(answers), device, args, with_images=not args.question_only)
    if args.load_lxmert_qa and state is not None:
        table = Path(args.data_root) / "lxmert" / "all_ans.json"
        found = load_answer_head(model.logit_fc, state, path, answers, AnswerTable(table), table)
        dist.print0(f"answer head from {path}: {found} of {len(answers)} answers found, the others start at zero")
    return model


def load_split(splits, answers, images, args):
    """The GQA samples of comma-separated splits."""
    annotations = load_questions(args, "gqa", splits, load_tokenizer(bert_folder(args)), answers, GQA)
    sees = not args.question_only
    return VQADataset(annotations, images, args, num_answers=len(answers), with_images=sees)


def answer(model, samples, device, args):
    """The predictions of `evaluation.answers.predict` for a split."""
    loader = evaluation_loader(samples, eval_batches(samples.annotations, args), device, args)
    precision = autocast(device, args.bf16, args.fp16)
    return predict(
        model, lambda m, batch: classify(m, batch, args.mask_padding), loader, precision, one_is_right=args.mce_loss
    )


def score(annotations, predictions):
    """Whether each prediction is right, and the report: open and binary questions, structural and semantic types.

    Open are the questions of the structural type "query", binary all others, as in GQA's own evaluation.
    """
    structures = [annotations.question_type(row) for row, *_ in predictions]
    kinds = [structure and ("open" if structure == "query" else "binary") for structure in structures]
    semantic = [annotations.answer_type(row) for row, *_ in predictions]
    scores = soft_scores(annotations, predictions)
    return scores, answer_report(scores, {"kind": kinds, "structure": structures, "answer_type": semantic})


def evaluate(model, samples, answers, device, args):
    """(report, gallery): the scores of a split in percent, and what makes the cards of the report page."""
    predictions = answer(model, samples, device, args)
    scores, report = score(samples.annotations, predictions)
    image_of = None if args.question_only else samples.read_image
    return report, partial(build_gallery, samples.annotations, predictions, scores, answers, image_of)


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    run, steps = open_run("gqa", args.run(), device, write_report), args.steps()
    answers, images = read_label_vocab(Path(args.data_root) / "gqa"), open_images(args, GQA)
    samples = load_split(args.train, answers, images, args)
    load = partial(training_loader, samples, damage=DamageCount(samples.annotations, args), device=device, args=args)
    order = train_batches(samples.annotations, args)
    valid = load_split(args.valid, answers, images, args) if args.valid else None
    if unknown := samples.annotations.meta["unknown_answers"]:
        dist.print0(f"{unknown} training questions have an answer that is no class; they count for nothing")
    run.watch_data(**{"--train": samples.annotations.digests, "--valid": valid and valid.annotations.digests})
    majority = majority_accuracy(samples.annotations, valid and valid.annotations, len(answers))

    model = compile_parts(build_model(answers, device, args), args.compile)
    optimizers = build_optimizers(model, args.optimizers(), steps.updates_per_epoch(len(order)))
    updater = run.start(model, optimizers, steps, batches=len(order), name_of=samples.annotations.question_id)

    for epoch in run.epochs():
        for batch in run.batches(order.epoch(epoch), load, most=0 if args.skip_training else None):
            with updater.forward():
                logits = classify(updater.model, batch, args.mask_padding)
                loss = answering_loss(logits, batch["answer_scores"], batch["usable"], args)
            shown = loss if args.loss_scale == 1 else loss * logits.shape[1] / args.loss_scale
            updater(loss, {"loss": shown, "train_accuracy": 100 * batch_accuracy(logits, batch["answer_scores"])})
        is_best = False
        if valid is not None:
            run.save()
            report, gallery = evaluate(updater.model, valid, answers, device, args)
            run.log(epoch, **headlines(report))
            is_best = run.keep(report, "accuracy", gallery)
        save_task(run.folder, model, is_best, fused_settings(args))
    run.finish(task="gqa", split=args.valid, **task_result(run.best), **majority)


def test(device, args):
    """Answer one split and write <split>_predict.json, the submission format; with labels, the score as well."""
    answers = read_label_vocab(Path(args.data_root) / "gqa")
    samples = load_split(args.test, answers, open_images(args, GQA), args)
    annotations = samples.annotations
    results = args.split_results(len(annotations), split_paths(args, "gqa", args.test))
    predictions = answer(build_model(answers, device, args), samples, device, args)
    if dist.rank() != 0:
        return
    rows = [{"questionId": str(annotations.question_id(row)), "prediction": answers[c[0]]} for row, c, _ in predictions]
    results.write_predictions(rows)
    if annotations.answer_totals(len(answers)).any():
        report = score(annotations, predictions)[1]
        results.write_score(report, program="gqa", task="gqa", checkpoint=args.load)
    results.finish()


def main(args):
    device = dist.setup()
    check_fused_flags(args)
    check_test_flags(args, "gqa")
    (test if args.test else train)(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
