"""GQA: fine-tune the fused encoder on compositional questions, evaluate it every epoch, write the submission file.

    python -m clip_vl.gqa --output snap/gqa/NAME --loadLXMERTQA snap/pretrain/NAME/Epoch11 ...     fine-tune
    python -m clip_vl.gqa --output snap/gqa/NAME --load snap/gqa/NAME/BEST --test testdev ...      score testdev
    bash scripts/finetune_gqa.bash 0,1,2,3 NAME 9590 4 ...                                         four GPUs

Reads data/gqa (data/README.md). Training writes BEST.pth and LAST.pth, resumable checkpoints, log.jsonl, result.json
and report.html; --test testdev or submit writes <split>_predict.json, the form that the server takes. The score is
exact match in percent, over all questions and over open and yes/no-or-choice ones apart (arXiv:1902.09506).
"""

from dataclasses import dataclass

from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, fused_settings
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

from pathlib import Path

from clip_vl.datasets.images.collections import GQA
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
from clip_vl.engine.split_results import SplitResults
from clip_vl.evaluation.answers import (
    answer_report,
    batch_accuracy,
    headlines,
    majority_accuracy,
    predict,
    soft_scores_of,
)
from clip_vl.losses.answering import single_answer_loss, soft_answer_loss
from clip_vl.models.fused.build import bert_folder, build_classifier, build_updater, compile_parts
from clip_vl.models.fused.checkpoints import checkpoint_path, load_answer_head, save_task
from clip_vl.models.fused.encoder import classify
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
            loss = answering_loss(logits, batch["answer_scores"], batch["usable"], args)
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
    return predict(
        model,
        lambda m, batch: classify(m, batch, args.mask_padding),
        loader,
        autocast(device, args),
        one_is_right=args.mce_loss,
    )


def score(annotations, predictions):
    """Whether each prediction is right, and the report: open and binary questions, structural and semantic types.

    Open are the questions of the structural type "query", binary all others, as in GQA's own evaluation.
    """
    structures = [annotations.question_type(row) for row, *_ in predictions]
    kinds = [structure and ("open" if structure == "query" else "binary") for structure in structures]
    semantic = [annotations.answer_type(row) for row, *_ in predictions]
    scores = soft_scores_of(annotations, predictions)
    return scores, answer_report(scores, {"kind": kinds, "structure": structures, "answer_type": semantic})


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
    job = Job("gqa", args, device)
    tokenizer, answers = load_tokenizer(bert_folder(args)), read_label_vocab(Path(args.data_root) / "gqa")
    images, sees = open_images(args, GQA), not args.question_only

    annotations = load_questions(args, "gqa", args.train, tokenizer, answers, GQA)
    job.damage = DamageCount(annotations, args)
    if unknown := annotations.meta["unknown_answers"]:
        dist.print0(f"{unknown} training questions have an answer that is no class; they count for nothing")
    job.train_set = VQADataset(annotations, images, args, num_answers=len(answers), with_images=sees)
    job.train_order = train_batches(annotations, args)
    valid = load_questions(args, "gqa", args.valid, tokenizer, answers, GQA) if args.valid else None
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
        task="gqa", split=args.valid, checkpoint="BEST.pth" if best else "LAST.pth", **best, **majority
    )
    if dist.rank() == 0:
        print(f"report: {write_report(job.run.folder)}")


def test(device, args):
    """Answer one split and write <split>_predict.json, the submission format; with labels, the score as well."""
    if not args.load:
        raise UserError("--test needs the fine-tuned model: pass --load, such as --load snap/gqa/NAME/BEST")
    answers = read_label_vocab(Path(args.data_root) / "gqa")
    annotations = load_questions(args, "gqa", args.test, load_tokenizer(bert_folder(args)), answers, GQA)
    dataset = VQADataset(
        annotations, open_images(args, GQA), args, num_answers=len(answers), with_images=not args.question_only
    )
    samples = min(len(annotations), args.max_eval_samples or len(annotations))
    results = SplitResults(
        args.output, args.test, samples=samples, checkpoint=checkpoint_path(args.load, ".pth"),
        data=split_paths(args, "gqa", args.test), settings=fused_settings(args, paths=False),
        overwrite=args.overwrite,
    )  # fmt: skip
    predictions = answer(build_model(answers, device, args), dataset, eval_batches(annotations, args), device, args)
    if dist.rank() != 0:
        return
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"questionId": str(annotations.question_id(row)), "prediction": answers[c[0]]} for row, c, _ in predictions]
    atomic_json(folder / f"{args.test}_predict.json", rows)
    print(f"{len(rows)} answers: {folder / args.test}_predict.json")
    if annotations.answer_totals(len(answers)).any():
        _, report = score(annotations, predictions)
        result = {"program": "gqa", "task": "gqa", "split": args.test, "checkpoint": args.load, **report}
        atomic_json(folder / f"result_{args.test}.json", result)
        print(f"{args.test}: {report['accuracy'] / 100:.4f} over {report['accuracy_n']} questions")
    results.finish()


def main(args):
    device = dist.setup()
    check_fused_flags(args)
    if args.test:
        test(device, args)
    else:
        train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
