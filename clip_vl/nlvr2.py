"""NLVR2 and NLVR: fine-tune the fused encoder to tell whether a statement about images is true.

    python -m clip_vl.nlvr2 --output snap/nlvr2/NAME --loadLXMERT snap/pretrain/NAME/Epoch11 ...     fine-tune
    python -m clip_vl.nlvr2 --output snap/nlvr2/NAME --load snap/nlvr2/NAME/BEST --test test1 ...    score test1
    python -m clip_vl.nlvr2 --dataset nlvr --train train --valid dev ...                             NLVR v1
    bash scripts/finetune_nlvr2.bash 0,1,2,3 NAME 9590 4 ...                                         four GPUs

A statement of NLVR2 (arXiv:1811.00491) is about two photographs: it is encoded with each, and the head sees both pooled
vectors (LXMERT, arXiv:1908.07490). One of NLVR v1 (Suhr et al., ACL 2017) is about up to four pictures of three boxes,
each in six orders of the boxes, and is judged for every picture and order. Reads data/nlvr2 or data/nlvr
(data/README.md). Training writes BEST.pth and LAST.pth, resumable checkpoints, log.jsonl, result.json and report.html;
--test writes <split>_predict.csv, the official form (identifier,True), and result_<split>.json. Scores, in percent:
accuracy over statements with their images, and consistency, the share of statements that are judged rightly with all
pairs of their set, or with all pictures and orders (as each project's own script counts it).
"""

from dataclasses import dataclass

from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, check_test_flags, fused_settings
from clip_vl.flags.parser import flag, parse


@dataclass
class NLVR2Flags(FusedEncoderFlags):
    """NLVR2"""

    output: str = flag("snap/nlvr2/test", "Run folder: settings, log, checkpoints, result and report.")
    dataset: str = flag(
        "nlvr2", "nlvr2, or nlvr for version 1: which folder of the data root.", choices=["nlvr2", "nlvr"]
    )
    train: str = flag("train", "Training files under <data_root>/<dataset>.")
    valid: str = flag("dev", "Validation file; '' for none, and then only LAST.pth is written.")
    test: str | None = flag(None, "Only judge this split (dev, test1, ...) with --load and write its submission file.")
    question_only: bool = flag(False, "Train and test without images: what the statements alone give away.")


FLAGS = parse(NLVR2Flags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from functools import partial
from pathlib import Path
from typing import NamedTuple

from clip_vl.datasets.loader import DamageCount, evaluation_loader, training_loader
from clip_vl.datasets.lxmert.batches import eval_batches, open_images, split_paths, train_batches
from clip_vl.datasets.lxmert.nlvr2 import StatementDataset
from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.lxmert.vqa import load_questions
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_write
from clip_vl.engine.optim import autocast
from clip_vl.engine.readers.text import written
from clip_vl.engine.run import open_run
from clip_vl.evaluation.answers import answer_report, consistency, headlines, majority_accuracy, predict, soft_scores
from clip_vl.losses.answering import single_answer_loss
from clip_vl.models.fused.build import bert_folder, build_classifier, compile_parts
from clip_vl.models.fused.checkpoints import save_task, task_result
from clip_vl.models.fused.encoder import classify
from clip_vl.models.fused.optim import build_optimizers
from clip_vl.reports.answers import build_gallery
from clip_vl.reports.page import write_report


class Version(NamedTuple):
    """A version of the data set.

    consistent: {measure: the parts of an identifier that the copies share which must all be judged rightly}
    """

    images_each: int
    consistent: dict


VERSIONS = {
    "nlvr2": Version(2, {"consistency": (0, 1, 3)}),  # dev-850-2-1: pair 2 of set 850 with its sentence 1
    # dev-1373-0-4: sentence 1373, image 0, order 4 of its boxes. NLVR's own script: over all of a sentence's images
    "nlvr": Version(1, {"consistency": (0, 1), "consistency_of_images": (0, 1, 2)}),
}
CLASSES = TASKS["nlvr2"].classes


def load_split(splits, images, args):
    """The samples of comma-separated splits; an item of their annotations is a statement with one image."""
    task, each = TASKS[args.dataset], VERSIONS[args.dataset].images_each
    tokenizer = load_tokenizer(bert_folder(args))
    annotations = load_questions(args, args.dataset, splits, tokenizer, CLASSES, task.collection, task.read_entry)
    return StatementDataset(annotations, images, args, images_each=each, with_images=not args.question_only)


def judge(model, samples, device, args):
    """The predictions of `evaluation.answers.predict` for a split."""
    order = eval_batches(samples.annotations, args, samples.images_each)
    loader = evaluation_loader(samples, order, device, args)
    precision = autocast(device, args.bf16, args.fp16)
    return predict(model, lambda m, batch: classify(m, batch, args.mask_padding), loader, precision, one_is_right=True)


def score(annotations, predictions, version):
    """Whether each prediction is right, and the report: accuracy, by truth, and consistency."""
    truth = [next((CLASSES[c] for c in annotations.answers(row)[0]), "") for row, *_ in predictions]
    identifiers = [annotations.question_id(row).split("-") for row, *_ in predictions]
    scores = soft_scores(annotations, predictions)
    report = answer_report(scores, {"answer_type": truth})
    for name, shared in version.consistent.items():
        report |= consistency(scores, [tuple(parts[place] for place in shared) for parts in identifiers], name)
    return scores, report


def evaluate(model, samples, device, args):
    """(report, gallery): the scores of a split in percent, and what makes the cards of the report page."""
    predictions = judge(model, samples, device, args)
    scores, report = score(samples.annotations, predictions, VERSIONS[args.dataset])
    image_of = None if args.question_only else samples.read_image
    return report, partial(build_gallery, samples.annotations, predictions, scores, CLASSES, image_of)


def build_model(device, args):
    sees, each = not args.question_only, VERSIONS[args.dataset].images_each
    return build_classifier(len(CLASSES), device, args, with_images=sees, images_each=each)[0]


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    run, steps = open_run("nlvr2", args.run(), device, write_report), args.steps()
    images = open_images(args, TASKS[args.dataset].collection)
    samples = load_split(args.train, images, args)
    load = partial(training_loader, samples, damage=DamageCount(samples.annotations, args), device=device, args=args)
    order = train_batches(samples.annotations, args, samples.images_each)
    valid = load_split(args.valid, images, args) if args.valid else None
    run.watch_data(**{"--train": samples.annotations.digests, "--valid": valid and valid.annotations.digests})
    majority = majority_accuracy(samples.annotations, valid and valid.annotations, len(CLASSES))

    model = compile_parts(build_model(device, args), args.compile)
    optimizers = build_optimizers(model, args.optimizers(), steps.updates_per_epoch(len(order)))
    updater = run.start(model, optimizers, steps, batches=len(order), name_of=samples.annotations.question_id)

    for epoch in run.epochs():
        for batch in run.batches(order.epoch(epoch), load, most=0 if args.skip_training else None):
            with updater.forward():
                logits = classify(updater.model, batch, args.mask_padding)
                loss = single_answer_loss(logits, batch["target"], batch["usable"])
            accuracy = 100 * (logits.argmax(1) == batch["target"]).float().mean()
            updater(loss, {"loss": loss, "train_accuracy": accuracy})
        is_best = False
        if valid is not None:
            run.save()
            report, gallery = evaluate(updater.model, valid, device, args)
            run.log(epoch, **headlines(report))
            is_best = run.keep(report, "accuracy", gallery)
        save_task(run.folder, model, is_best, fused_settings(args))
    run.finish(task=args.dataset, split=args.valid, **task_result(run.best), **majority)


def test(device, args):
    """Evaluate one split and write <split>_predict.csv, the submission format; with labels, the scores as well."""
    samples = load_split(args.test, open_images(args, TASKS[args.dataset].collection), args)
    annotations = samples.annotations
    count = len(annotations) // samples.images_each
    results = args.split_results(count, split_paths(args, args.dataset, args.test))
    predictions = judge(build_model(device, args), samples, device, args)
    if dist.rank() != 0:
        return
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{annotations.question_id(row)},{CLASSES[c[0]]}\n" for row, c, _ in predictions]
    atomic_write(folder / f"{args.test}_predict.csv", written("".join(lines)))
    print(f"{len(lines)} judgements: {folder / args.test}_predict.csv")
    if annotations.answer_totals(len(CLASSES)).any():
        _, report = score(annotations, predictions, VERSIONS[args.dataset])
        names = {"program": "nlvr2", "task": args.dataset, "checkpoint": args.load}
        results.write_score(report, "statements with their images,", **names)
        print(f"consistency {report['consistency'] / 100:.4f} over {report['consistency_n']} statements")
    results.finish()


def main(args):
    device = dist.setup()
    check_fused_flags(args)
    if args.load_lxmert_qa:
        raise UserError("--loadLXMERTQA brings an answer head, but it is for one image a text; use --loadLXMERT")
    check_test_flags(args, "nlvr2")
    (test if args.test else train)(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
