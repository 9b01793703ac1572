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

from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, check_test_flags, fused_settings
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

from functools import partial

from clip_vl.datasets.images.collections import FLICKR30K
from clip_vl.datasets.loader import DamageCount, evaluation_loader, training_loader
from clip_vl.datasets.lxmert.batches import eval_batches, open_images, split_paths, train_batches
from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.lxmert.vqa import VQADataset, load_questions
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.optim import autocast
from clip_vl.engine.run import open_run
from clip_vl.evaluation.answers import answer_report, batch_accuracy, headlines, majority_accuracy, predict, soft_scores
from clip_vl.losses.answering import single_answer_loss
from clip_vl.models.fused.build import bert_folder, build_classifier, compile_parts
from clip_vl.models.fused.checkpoints import save_task, task_result
from clip_vl.models.fused.encoder import classify
from clip_vl.models.fused.optim import build_optimizers
from clip_vl.reports.answers import build_gallery
from clip_vl.reports.page import write_report


CLASSES = TASKS["snli_ve"].classes


def load_split(splits, images, args):
    """The samples of comma-separated splits; a label that is none of the three is an error."""
    tokenizer = load_tokenizer(bert_folder(args))
    annotations = load_questions(args, "snli_ve", splits, tokenizer, CLASSES, FLICKR30K)
    if unknown := annotations.meta["unknown_answers"]:
        raise DataError(f"{unknown} labels of {args.data_root}/snli_ve ({splits}) are none of {', '.join(CLASSES)}")
    return VQADataset(annotations, images, args, num_answers=len(CLASSES), with_images=not args.question_only)


def judge(model, samples, device, args):
    """The predictions of `evaluation.answers.predict` for a split."""
    loader = evaluation_loader(samples, eval_batches(samples.annotations, args), device, args)
    precision = autocast(device, args.bf16, args.fp16)
    return predict(model, lambda m, batch: classify(m, batch, args.mask_padding), loader, precision, one_is_right=True)


def score(annotations, predictions):
    """Whether each prediction is right, and the report by the true class."""
    truth = [next((CLASSES[c] for c in annotations.answers(row)[0]), "") for row, *_ in predictions]
    scores = soft_scores(annotations, predictions)
    return scores, answer_report(scores, {"answer_type": truth})


def evaluate(model, samples, device, args):
    """(report, gallery): the scores of a split in percent, and what makes the cards of the report page."""
    predictions = judge(model, samples, device, args)
    scores, report = score(samples.annotations, predictions)
    image_of = None if args.question_only else samples.read_image
    return report, partial(build_gallery, samples.annotations, predictions, scores, CLASSES, image_of)


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    run, steps = open_run("snli_ve", args.run(), device, write_report), args.steps()
    images = open_images(args, FLICKR30K)
    samples = load_split(args.train, images, args)
    load = partial(training_loader, samples, damage=DamageCount(samples.annotations, args), device=device, args=args)
    order = train_batches(samples.annotations, args)
    valid = load_split(args.valid, images, args) if args.valid else None
    run.watch_data(**{"--train": samples.annotations.digests, "--valid": valid and valid.annotations.digests})
    majority = majority_accuracy(samples.annotations, valid and valid.annotations, len(CLASSES))

    model, _, _ = build_classifier(len(CLASSES), device, args, with_images=not args.question_only)
    model = compile_parts(model, args.compile)
    optimizers = build_optimizers(model, args.optimizers(), steps.updates_per_epoch(len(order)))
    updater = run.start(model, optimizers, steps, batches=len(order), name_of=samples.annotations.question_id)

    for epoch in run.epochs():
        for batch in run.batches(order.epoch(epoch), load, most=0 if args.skip_training else None):
            answers = batch["answer_scores"]
            with updater.forward():
                logits = classify(updater.model, batch, args.mask_padding)
                loss = single_answer_loss(logits, answers.argmax(1), batch["usable"] & (answers.sum(1) > 0))
            updater(loss, {"loss": loss, "train_accuracy": 100 * batch_accuracy(logits, answers)})
        is_best = False
        if valid is not None:
            run.save()
            report, gallery = evaluate(updater.model, valid, device, args)
            run.log(epoch, **headlines(report))
            is_best = run.keep(report, "accuracy", gallery)
        save_task(run.folder, model, is_best, fused_settings(args))
    run.finish(task="snli_ve", split=args.valid, **task_result(run.best), **majority)


def test(device, args):
    """Evaluate one split and write <split>_predict.json and, with labels, its score."""
    samples = load_split(args.test, open_images(args, FLICKR30K), args)
    annotations = samples.annotations
    results = args.split_results(len(annotations), split_paths(args, "snli_ve", args.test))
    model, _, _ = build_classifier(len(CLASSES), device, args, with_images=not args.question_only)
    predictions = judge(model, samples, device, args)
    if dist.rank() != 0:
        return
    rows = [{"pairID": annotations.question_id(row), "prediction": CLASSES[c[0]]} for row, c, _ in predictions]
    results.write_predictions(rows, "predictions")
    if annotations.answer_totals(len(CLASSES)).any():
        _, report = score(annotations, predictions)
        names = {"program": "snli_ve", "task": "snli_ve", "checkpoint": args.load}
        results.write_score(report, "hypotheses", **names)
    results.finish()


def main(args):
    device = dist.setup()
    check_fused_flags(args)
    if args.load_lxmert_qa:
        raise UserError(
            "--loadLXMERTQA brings an answer head, but none of its answers is a class here; use --loadLXMERT"
        )
    check_test_flags(args, "snli_ve")
    (test if args.test else train)(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
