"""Visual question answering: fine-tune the fused encoder, evaluate it every epoch, write the submission files.

    python -m clip_vl.vqa --output snap/vqa/NAME --loadLXMERTQA snap/pretrain/NAME/Epoch11 ...     fine-tune
    python -m clip_vl.vqa --output snap/vqa/NAME --load snap/vqa/NAME/BEST --test minival ...      score minival
    bash scripts/finetune_vqa.bash 0,1,2,3 NAME 9590 4 ...                                         four GPUs

Reads data/vqa (data/README.md). Training writes BEST.pth and LAST.pth, resumable checkpoints, log.jsonl, result.json
and report.html; testing writes minival_predict.json or test_predict.json and result_minival.json. The score is the
mean soft score of the best answer over all questions, in percent (VQA v2, arXiv:1612.00837).
"""

from dataclasses import dataclass

from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, fused_settings
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
from pathlib import Path

from clip_vl.datasets.loader import DamageCount, evaluation_loader, training_loader
from clip_vl.datasets.lxmert.answers import AnswerTable, read_label_vocab
from clip_vl.datasets.lxmert.batches import eval_batches, open_images, split_paths, train_batches
from clip_vl.datasets.lxmert.vqa import VQADataset, load_questions
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.dry_run import dry_run
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_json
from clip_vl.engine.job import Job
from clip_vl.engine.optim import autocast
from clip_vl.engine.random import seed_step
from clip_vl.engine.readers.text import id_of
from clip_vl.engine.split_results import SplitResults
from clip_vl.evaluation.answers import (
    answer_report,
    batch_accuracy,
    headlines,
    majority_accuracy,
    predict,
    soft_scores_of,
)
from clip_vl.evaluation.vqa_score import official_accuracy
from clip_vl.losses.answering import soft_answer_loss
from clip_vl.models.fused.build import bert_folder, build_classifier, build_updater, compile_parts
from clip_vl.models.fused.checkpoints import checkpoint_path, load_answer_head, save_task
from clip_vl.models.fused.encoder import classify
from clip_vl.reports.answers import build_gallery
from clip_vl.reports.page import write_report


def train_one_epoch(job, epoch, start, best, args):
    """The epoch's micro-batches from `start` on; updates every --gradient_accumulation_steps, and for what is left."""
    model, updater, batches = job.model.train(), job.updater, job.train_order.epoch(epoch)
    if args.dry_run or args.skip_training:
        batches = batches[: args.gradient_accumulation_steps if args.dry_run else 0]
    loader = training_loader(job.train_set, epoch, batches[start:], job.damage, job.device, args)
    for done, batch in enumerate(loader, start + 1):
        is_last, in_this_update = job.accumulation(done, len(batches))
        with updater.micro_batch(is_last):
            logits = classify(model, batch, args.mask_padding)
            loss = soft_answer_loss(logits, batch["answer_scores"], args.loss_scale, batch["usable"])
            updater.backward(loss, in_this_update)
        job.meters.add("loss", loss if args.loss_scale == 1 else loss * logits.shape[1] / args.loss_scale)
        job.meters.add("train_accuracy", 100 * batch_accuracy(logits, batch["answer_scores"]))
        job.report(epoch)
        if is_last:
            stop = job.step(lambda: [job.train_set.annotations.question_id(int(row)) for row in batch["rows"][:4]])  # noqa: B023
            job.save_if_due(stop, epoch=epoch, batch=done, best=best)


def answer(model, dataset, order, device, args, watched=iter):
    """The predictions of `evaluation.answers.predict` for a split; `watched` passes the batches on, or stops."""
    loader = watched(evaluation_loader(dataset, order, device, args))
    return predict(model, lambda m, batch: classify(m, batch, args.mask_padding), loader, autocast(device, args))


def score(annotations, predictions):
    """Soft score of each prediction's first answer, and the report by answer type and question type (percent)."""
    scores = soft_scores_of(annotations, predictions)
    types = {"answer_type": annotations.answer_type, "question_type": annotations.question_type}
    return scores, answer_report(scores, {name: [of(row) for row, *_ in predictions] for name, of in types.items()})


def build_model(answers, device, args):
    """The classifier; with --loadLXMERTQA its answer head starts from the pre-training head's rows of the same text."""
    model, state, path = build_classifier(len(answers), device, args, with_images=not args.question_only)
    if args.load_lxmert_qa and state is not None:
        table = Path(args.data_root) / "lxmert" / "all_ans.json"
        found = load_answer_head(model.logit_fc, state, path, answers, AnswerTable(table), table)
        dist.print0(f"answer head from {path}: {found} of {len(answers)} answers found, the others start at zero")
    return model


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    seed_step(args.seed, 0, 0)  # the same first weights on every rank
    job = Job("vqa", args, device)
    tokenizer, answers = load_tokenizer(bert_folder(args)), read_label_vocab(Path(args.data_root) / "vqa")
    images, sees = open_images(args), not args.question_only

    annotations = load_questions(args, "vqa", args.train, tokenizer, answers)
    job.damage = DamageCount(annotations, args)
    job.train_set = VQADataset(annotations, images, args, num_answers=len(answers), with_images=sees)
    job.train_order = train_batches(annotations, args)
    valid = load_questions(args, "vqa", args.valid, tokenizer, answers) if args.valid else None
    if valid is not None:
        valid_set = VQADataset(valid, images, args, num_answers=len(answers), with_images=sees)
        valid_order = eval_batches(valid, args)

    model = build_model(answers, device, args)
    if args.compile:
        compile_parts(model)
    job.model = dist.wrap(model, device)
    job.watch_data(**{"--train": annotations.digests, "--valid": valid and valid.digests})
    updates_per_epoch = -(-len(job.train_order) // args.gradient_accumulation_steps)
    job.updater = build_updater(job.model, args, updates_per_epoch, device)
    last_epoch = args.stop_after_epoch or args.epochs
    if args.dry_run:
        return dry_run(lambda: train_one_epoch(job, 0, 0, {}, args), last_epoch * updates_per_epoch, device)
    position = job.restore() or {"epoch": args.start_epoch, "batch": 0, "best": {}}

    best = position["best"]
    for epoch in range(position["epoch"], last_epoch):
        train_one_epoch(job, epoch, position["batch"] if epoch == position["epoch"] else 0, best, args)
        is_best = False
        if valid is not None:
            job.save(epoch=epoch, batch=len(job.train_order), best=best)
            predictions = answer(job.model, valid_set, valid_order, device, args, job.until_stopped)
            scores, report = score(valid, predictions)
            job.log(epoch, **headlines(report))
            is_best = report["accuracy"] > best.get("accuracy", -1)
        if is_best:
            best = report | {"epoch": epoch + 1}
            picture_of = (lambda row: images.read(valid.image_id(row))) if sees else None
            job.write_gallery(lambda: build_gallery(valid, predictions, scores, answers, picture_of))  # noqa: B023
        save_task(job.run.folder, model, is_best, fused_settings(args))
        job.save(epoch=epoch + 1, batch=0, best=best)

    majority = majority_accuracy(annotations, valid, len(answers)) if valid is not None else {}
    job.run.write_result(
        task="vqa", split=args.valid, checkpoint="BEST.pth" if best else "LAST.pth", **best, **majority
    )
    if dist.rank() == 0:
        print(f"report: {write_report(job.run.folder)}")


def test(device, args):
    """Answer one split and write <split>_predict.json, the submission format; with labels, the score as well."""
    if not args.load:
        raise UserError("--test needs the fine-tuned model: pass --load, such as --load snap/vqa/NAME/BEST")
    answers = read_label_vocab(Path(args.data_root) / "vqa")
    annotations = load_questions(args, "vqa", args.test, load_tokenizer(bert_folder(args)), answers)
    dataset = VQADataset(
        annotations, open_images(args), args, num_answers=len(answers), with_images=not args.question_only
    )
    samples = min(len(annotations), args.max_eval_samples or len(annotations))
    results = SplitResults(
        args.output, args.test, samples=samples, checkpoint=checkpoint_path(args.load, ".pth"),
        data=split_paths(args, "vqa", args.test), settings=fused_settings(args, paths=False),
        overwrite=args.overwrite,
    )  # fmt: skip
    predictions = answer(build_model(answers, device, args), dataset, eval_batches(annotations, args), device, args)
    if dist.rank() != 0:
        return
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"answer": answers[c[0]], "question_id": annotations.question_id(row)} for row, c, _ in predictions]
    atomic_json(folder / f"{args.test}_predict.json", rows)
    print(f"{len(rows)} answers: {folder / args.test}_predict.json")
    if annotations.answer_totals(len(answers)).any():
        _, report = score(annotations, predictions)
        report |= official_report(args, rows)
        result = {"program": "vqa", "task": "vqa", "split": args.test, "checkpoint": args.load, **report}
        atomic_json(folder / f"result_{args.test}.json", result)
        print(f"{args.test}: {report['accuracy'] / 100:.4f} over {report['accuracy_n']} questions")
    results.finish()


def official_report(args, rows):
    """{"official_accuracy": percent} by the official evaluator, where the split's official annotations are on disk."""
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
    if args.test:
        test(device, args)
    else:
        train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
