"""SNLI-VE: fine-tune the fused encoder to tell what an image entails, contradicts or leaves open.

    python -m clip_vl.snli_ve --output snap/snli_ve/NAME --loadLXMERT snap/pretrain/NAME/Epoch11 ...    fine-tune
    python -m clip_vl.snli_ve --output snap/snli_ve/NAME --load snap/snli_ve/NAME/BEST --test test ...  score test
    bash scripts/finetune_snli_ve.bash 0,1,2,3 NAME 9590 4 ...                                          four GPUs

Reads data/snli_ve and Flickr30k images (data/README.md). Training writes BEST.pth and LAST.pth, resumable checkpoints,
log.jsonl, result.json and report.html; --test writes <split>_predict.json, a list of {"pairID", "prediction"} (there is
no server and no official form), and result_<split>.json. The model sees the image and the hypothesis, not the caption
that SNLI calls premise; the score is accuracy in percent (arXiv:1901.06706).
"""

from dataclasses import dataclass

from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, fused_settings
from clip_vl.flags.parser import flag, parse


@dataclass
class SNLIVEFlags(FusedEncoderFlags):
    """SNLI-VE"""

    output: str = flag("snap/snli_ve/test", "Run folder: settings, log, checkpoints, result and report.")
    train: str = flag("train", "Training files under <data_root>/snli_ve.")
    valid: str = flag("dev", "Validation file; '' for none, and then only LAST.pth is written.")
    test: str | None = flag(None, "Only judge this split (dev, test) with --load and write its predictions.")
    question_only: bool = flag(False, "Train and test without images: what the hypotheses alone give away.")


FLAGS = parse(SNLIVEFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from pathlib import Path

from clip_vl.datasets.images.collections import FLICKR30K
from clip_vl.datasets.loader import DamageCount, evaluation_loader, training_loader
from clip_vl.datasets.lxmert.batches import eval_batches, open_images, split_paths, train_batches
from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.lxmert.vqa import VQADataset, load_questions
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.dry_run import dry_run
from clip_vl.engine.errors import DataError, UserError
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
from clip_vl.losses.answering import single_answer_loss
from clip_vl.models.fused.build import bert_folder, build_classifier, build_updater, compile_parts
from clip_vl.models.fused.checkpoints import checkpoint_path, save_task
from clip_vl.models.fused.encoder import classify
from clip_vl.reports.answers import build_gallery
from clip_vl.reports.page import write_report

CLASSES = TASKS["snli_ve"].classes


def train_one_epoch(job, epoch, start, best, args):
    """The epoch's micro-batches from `start` on; updates every --gradient_accumulation_steps, and for what is left."""
    model, updater, batches = job.model.train(), job.updater, job.train_order.epoch(epoch)
    if args.dry_run or args.skip_training:
        batches = batches[: args.gradient_accumulation_steps if args.dry_run else 0]
    loader = training_loader(job.train_set, epoch, batches[start:], job.damage, job.device, args)
    for done, batch in enumerate(loader, start + 1):
        is_last, in_this_update = job.accumulation(done, len(batches))
        scores = batch["answer_scores"]
        with updater.micro_batch(is_last):
            logits = classify(model, batch, args.mask_padding)
            loss = single_answer_loss(logits, scores.argmax(1), batch["usable"] & (scores.sum(1) > 0))
            updater.backward(loss, in_this_update)
        job.meters.add("loss", loss)
        job.meters.add("train_accuracy", 100 * batch_accuracy(logits, scores))
        job.report(epoch)
        if is_last:
            stop = job.step(lambda: [job.train_set.annotations.question_id(int(row)) for row in batch["rows"][:4]])  # noqa: B023
            job.save_if_due(stop, epoch=epoch, batch=done, best=best)


def judge(model, dataset, order, device, args, watched=iter):
    """The predictions of `evaluation.answers.predict` for a split; `watched` passes the batches on, or stops."""
    loader = watched(evaluation_loader(dataset, order, device, args))
    return predict(
        model, lambda m, batch: classify(m, batch, args.mask_padding), loader, autocast(device, args), one_is_right=True
    )


def score(annotations, predictions):
    """Whether each prediction is right, and the report by the true class."""
    truth = [next((CLASSES[c] for c in annotations.answers(row)[0]), "") for row, *_ in predictions]
    scores = soft_scores_of(annotations, predictions)
    return scores, answer_report(scores, {"answer_type": truth})


def load_data(splits, images, args):
    """(annotations, samples) of comma-separated splits; a label that is none of the three is an error."""
    tokenizer = load_tokenizer(bert_folder(args))
    annotations = load_questions(args, "snli_ve", splits, tokenizer, CLASSES, FLICKR30K)
    if unknown := annotations.meta["unknown_answers"]:
        raise DataError(f"{unknown} labels of {args.data_root}/snli_ve ({splits}) are none of {', '.join(CLASSES)}")
    dataset = VQADataset(annotations, images, args, num_answers=len(CLASSES), with_images=not args.question_only)
    return annotations, dataset


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    seed_step(args.seed, 0, 0)  # the same first weights on every rank
    job = Job("snli_ve", args, device)
    images, sees = open_images(args, FLICKR30K), not args.question_only

    annotations, job.train_set = load_data(args.train, images, args)
    job.damage = DamageCount(annotations, args)
    job.train_order = train_batches(annotations, args)
    valid = None
    if args.valid:
        valid, valid_set = load_data(args.valid, images, args)
        valid_order = eval_batches(valid, args)

    model, _, _ = build_classifier(len(CLASSES), device, args, with_images=sees)
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
            predictions = judge(job.model, valid_set, valid_order, device, args, job.until_stopped)
            scores, report = score(valid, predictions)
            job.log(epoch, **headlines(report))
            is_best = report["accuracy"] > best.get("accuracy", -1)
        if is_best:
            best = report | {"epoch": epoch + 1}
            picture_of = (lambda row: images.read(valid.image_id(row))) if sees else None
            job.write_gallery(lambda: build_gallery(valid, predictions, scores, CLASSES, picture_of))  # noqa: B023
        save_task(job.run.folder, model, is_best, fused_settings(args))
        job.save(epoch=epoch + 1, batch=0, best=best)

    majority = majority_accuracy(annotations, valid, len(CLASSES)) if valid is not None else {}
    checkpoint = "BEST.pth" if best else "LAST.pth"
    job.run.write_result(task="snli_ve", split=args.valid, checkpoint=checkpoint, **best, **majority)
    if dist.rank() == 0:
        print(f"report: {write_report(job.run.folder)}")


def test(device, args):
    """Judge one split and write <split>_predict.json and, with labels, its score."""
    if not args.load:
        raise UserError("--test needs the fine-tuned model: pass --load, such as --load snap/snli_ve/NAME/BEST")
    annotations, dataset = load_data(args.test, open_images(args, FLICKR30K), args)
    samples = min(len(annotations), args.max_eval_samples or len(annotations))
    results = SplitResults(
        args.output, args.test, samples=samples, checkpoint=checkpoint_path(args.load, ".pth"),
        data=split_paths(args, "snli_ve", args.test), settings=fused_settings(args, paths=False),
        overwrite=args.overwrite,
    )  # fmt: skip
    model, _, _ = build_classifier(len(CLASSES), device, args, with_images=not args.question_only)
    predictions = judge(model, dataset, eval_batches(annotations, args), device, args)
    if dist.rank() != 0:
        return
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"pairID": annotations.question_id(row), "prediction": CLASSES[c[0]]} for row, c, _ in predictions]
    atomic_json(folder / f"{args.test}_predict.json", rows)
    print(f"{len(rows)} predictions: {folder / args.test}_predict.json")
    if annotations.answer_totals(len(CLASSES)).any():
        _, report = score(annotations, predictions)
        result = {"program": "snli_ve", "task": "snli_ve", "split": args.test, "checkpoint": args.load, **report}
        atomic_json(folder / f"result_{args.test}.json", result)
        print(f"{args.test}: {report['accuracy'] / 100:.4f} over {report['accuracy_n']} hypotheses")
    results.finish()


def main(args):
    device = dist.setup()
    check_fused_flags(args)
    if args.load_lxmert_qa:
        raise UserError(
            "--loadLXMERTQA brings an answer head, but none of its answers is a class here; use --loadLXMERT"
        )
    if args.test:
        test(device, args)
    else:
        train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
