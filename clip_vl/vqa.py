"""Visual question answering: fine-tune the fused encoder, evaluate it every epoch, write the submission files.

    python -m clip_vl.vqa --output snap/vqa/NAME --loadLXMERTQA snap/pretrain/NAME/Epoch11 ...     fine-tune
    python -m clip_vl.vqa --output snap/vqa/NAME --load snap/vqa/NAME/BEST --test minival ...      score minival
    bash scripts/finetune_vqa.bash 0,1,2,3 NAME 9590 4 ...                                         four GPUs

Reads data/vqa (data/README.md). Training writes BEST.pth and LAST.pth, resumable checkpoints, log.jsonl, result.json
and report.html; testing writes minival_predict.json or test_predict.json and result_minival.json. The score is the
mean soft score of the best answer over all questions, in percent (VQA v2, arXiv:1612.00837).
"""

from dataclasses import dataclass

from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, check_test_flags, fused_settings
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.published import CLIP_VIL_VQA


@dataclass
class VQAFlags(FusedEncoderFlags):
    """Visual question answering"""

    IGNORED = CLIP_VIL_VQA
    output: str = flag("snap/vqa/test", "Run folder: settings, log, checkpoints, result and report.")
    train: str = flag("train,nominival", "Training files under <data_root>/vqa.")
    valid: str = flag("minival", "Validation file; '' for none, and then only LAST.pth is written.")
    test: str | None = flag(
        None, "Only answer this split (minival, test, ...) with --load and write its submission file."
    )
    loss_scale: int = flag(1, "Factor of the loss; 1 means the number of answers (LXMERT's convention).")
    question_only: bool = flag(False, "Train and test without images: what the questions alone give away.")


FLAGS = parse(VQAFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import json
from functools import partial
from pathlib import Path

from clip_vl.datasets.loader import DamageCount, evaluation_loader, training_loader
from clip_vl.datasets.lxmert.answers import AnswerTable, read_label_vocab
from clip_vl.datasets.lxmert.batches import eval_batches, open_images, split_paths, train_batches
from clip_vl.datasets.lxmert.vqa import VQADataset, load_questions
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.optim import autocast
from clip_vl.engine.readers.text import id_of
from clip_vl.engine.run import open_run
from clip_vl.evaluation.answers import answer_report, batch_accuracy, headlines, majority_accuracy, predict, soft_scores
from clip_vl.losses.answering import soft_answer_loss
from clip_vl.models.fused.build import bert_folder, build_classifier, compile_parts
from clip_vl.models.fused.checkpoints import load_answer_head, save_task, task_result
from clip_vl.models.fused.encoder import classify
from clip_vl.models.fused.optim import build_optimizers
from clip_vl.reports.answers import build_gallery
from clip_vl.reports.page import write_report


def build_model(answers, device, args):
    """The classifier; with --loadLXMERTQA its answer head starts from the pre-training head's rows of the same text."""
    model, state, path = build_classifier(len(answers), device, args, with_images=not args.question_only)
    if args.load_lxmert_qa and state is not None:
        table = Path(args.data_root) / "lxmert" / "all_ans.json"
        found = load_answer_head(model.logit_fc, state, path, answers, AnswerTable(table), table)
        dist.print0(f"answer head from {path}: {found} of {len(answers)} answers found, the others start at zero")
    return model


def load_split(splits, answers, images, args):
    """The VQA samples of comma-separated splits."""
    annotations = load_questions(args, "vqa", splits, load_tokenizer(bert_folder(args)), answers)
    sees = not args.question_only
    return VQADataset(annotations, images, args, num_answers=len(answers), with_images=sees)


def answer(model, samples, device, args):
    """The predictions of `evaluation.answers.predict` for a split."""
    loader = evaluation_loader(samples, eval_batches(samples.annotations, args), device, args)
    precision = autocast(device, args.bf16, args.fp16)
    return predict(model, lambda m, batch: classify(m, batch, args.mask_padding), loader, precision)


def score(annotations, predictions):
    """Soft score of each prediction's first answer, and the report by answer type and question type (percent)."""
    scores = soft_scores(annotations, predictions)
    types = {"answer_type": annotations.answer_type, "question_type": annotations.question_type}
    return scores, answer_report(scores, {name: [of(row) for row, *_ in predictions] for name, of in types.items()})


def evaluate(model, samples, answers, device, args):
    """(report, gallery): the scores of a split in percent, and what makes the cards of the report page."""
    predictions = answer(model, samples, device, args)
    scores, report = score(samples.annotations, predictions)
    image_of = None if args.question_only else samples.read_image
    return report, partial(build_gallery, samples.annotations, predictions, scores, answers, image_of)


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    run, steps = open_run("vqa", args.run(), device, write_report), args.steps()
    answers, images = read_label_vocab(Path(args.data_root) / "vqa"), open_images(args)
    samples = load_split(args.train, answers, images, args)
    load = partial(training_loader, samples, damage=DamageCount(samples.annotations, args), device=device, args=args)
    order = train_batches(samples.annotations, args)
    valid = load_split(args.valid, answers, images, args) if args.valid else None
    run.watch_data(**{"--train": samples.annotations.digests, "--valid": valid and valid.annotations.digests})
    majority = majority_accuracy(samples.annotations, valid and valid.annotations, len(answers))

    model = compile_parts(build_model(answers, device, args), args.compile)
    optimizers = build_optimizers(model, args.optimizers(), steps.updates_per_epoch(len(order)))
    updater = run.start(model, optimizers, steps, batches=len(order), name_of=samples.annotations.question_id)

    for epoch in run.epochs():
        for batch in run.batches(order.epoch(epoch), load, most=0 if args.skip_training else None):
            with updater.forward():
                logits = classify(updater.model, batch, args.mask_padding)
                loss = soft_answer_loss(logits, batch["answer_scores"], args.loss_scale, batch["usable"])
            shown = loss if args.loss_scale == 1 else loss * logits.shape[1] / args.loss_scale
            updater(loss, {"loss": shown, "train_accuracy": 100 * batch_accuracy(logits, batch["answer_scores"])})
        is_best = False
        if valid is not None:
            run.save()
            report, gallery = evaluate(updater.model, valid, answers, device, args)
            run.log(epoch, **headlines(report))
            is_best = run.keep(report, "accuracy", gallery)
        save_task(run.folder, model, is_best, fused_settings(args))
    run.finish(task="vqa", split=args.valid, **task_result(run.best), **majority)


def test(device, args):
    """Answer one split and write <split>_predict.json, the submission format; with labels, the score as well."""
    answers = read_label_vocab(Path(args.data_root) / "vqa")
    samples = load_split(args.test, answers, open_images(args), args)
    annotations = samples.annotations
    results = args.split_results(len(annotations), split_paths(args, "vqa", args.test))
    predictions = answer(build_model(answers, device, args), samples, device, args)
    if dist.rank() != 0:
        return
    rows = [{"answer": answers[c[0]], "question_id": annotations.question_id(row)} for row, c, _ in predictions]
    results.write_predictions(rows)
    if annotations.answer_totals(len(answers)).any():
        report = score(annotations, predictions)[1] | official_report(args, rows)
        results.write_score(report, program="vqa", task="vqa", checkpoint=args.load)
    results.finish()


def official_report(args, rows):
    """{"official_accuracy": percent} by the official evaluator, where the split's official annotations are on disk."""
    from clip_vl.evaluation.vqa_score import official_accuracy

    given = {id_of(row["question_id"]): row["answer"] for row in rows}
    for name in (f"v2_mscoco_{args.test}2014_annotations.json", "v2_mscoco_val2014_annotations.json"):
        path = Path(args.data_root) / "vqa" / name
        if path.is_file():
            annotations = [a for a in json.loads(path.read_bytes())["annotations"] if id_of(a["question_id"]) in given]
            overall = official_accuracy(given, annotations)["overall"]
            print(f"official evaluator: {overall:.2f}")
            return {"official_accuracy": overall}
    return {}


def main(args):
    device = dist.setup()
    check_fused_flags(args)
    check_test_flags(args, "vqa")
    (test if args.test else train)(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
