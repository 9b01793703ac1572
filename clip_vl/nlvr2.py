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

from clip_vl.flags.fused import FusedEncoderFlags, check_fused_flags, fused_settings
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

from pathlib import Path
from typing import NamedTuple

from clip_vl.datasets.loader import DamageCount, evaluation_loader, training_loader
from clip_vl.datasets.lxmert.batches import eval_batches, open_images, split_paths, train_batches
from clip_vl.datasets.lxmert.nlvr2 import StatementDataset, side_by_side
from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.lxmert.vqa import load_questions
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.engine import dist
from clip_vl.engine.dry_run import dry_run
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_json, atomic_write
from clip_vl.engine.job import Job
from clip_vl.engine.optim import autocast
from clip_vl.engine.random import seed_step
from clip_vl.engine.readers.text import written
from clip_vl.engine.split_results import SplitResults
from clip_vl.evaluation.answers import answer_report, consistency, headlines, majority_accuracy, predict, soft_scores_of
from clip_vl.losses.answering import single_answer_loss
from clip_vl.models.fused.build import bert_folder, build_classifier, build_updater, compile_parts
from clip_vl.models.fused.checkpoints import checkpoint_path, save_task
from clip_vl.models.fused.encoder import classify
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
            loss = single_answer_loss(logits, batch["target"], batch["usable"])
            updater.backward(loss, in_this_update)
        job.meters.add("loss", loss)
        job.meters.add("train_accuracy", 100 * (logits.argmax(1) == batch["target"]).float().mean())
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


def score(annotations, predictions, version):
    """Whether each prediction is right, and the report: accuracy, by truth, and consistency."""
    truth = [next((CLASSES[c] for c in annotations.answers(row)[0]), "") for row, *_ in predictions]
    identifiers = [annotations.question_id(row).split("-") for row, *_ in predictions]
    scores = soft_scores_of(annotations, predictions)
    report = answer_report(scores, {"answer_type": truth})
    for name, shared in version.consistent.items():
        report |= consistency(scores, [tuple(parts[place] for place in shared) for parts in identifiers], name)
    return scores, report


def load_data(splits, tokenizer, images, version, args):
    """(annotations, samples) of comma-separated splits; an item of the annotations is a statement with one image."""
    task = TASKS[args.dataset]
    annotations = load_questions(args, args.dataset, splits, tokenizer, CLASSES, task.collection, task.read_entry)
    sees = not args.question_only
    return annotations, StatementDataset(annotations, images, args, images_each=version.images_each, with_images=sees)


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    seed_step(args.seed, 0, 0)  # the same first weights on every rank
    job = Job("nlvr2", args, device)
    version, tokenizer = VERSIONS[args.dataset], load_tokenizer(bert_folder(args))
    images, sees = open_images(args, TASKS[args.dataset].collection), not args.question_only

    annotations, job.train_set = load_data(args.train, tokenizer, images, version, args)
    job.damage = DamageCount(annotations, args)
    job.train_order = train_batches(annotations, args, version.images_each)
    valid = None
    if args.valid:
        valid, valid_set = load_data(args.valid, tokenizer, images, version, args)
        valid_order = eval_batches(valid, args, version.images_each)

    model, _, _ = build_classifier(len(CLASSES), device, args, with_images=sees, images_each=version.images_each)
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
            scores, report = score(valid, predictions, version)
            job.log(epoch, **headlines(report))
            is_best = report["accuracy"] > best.get("accuracy", -1)
        if is_best:
            best = report | {"epoch": epoch + 1}
            picture_of = (lambda row: picture(valid, images, row, version.images_each)) if sees else None
            job.write_gallery(lambda: build_gallery(valid, predictions, scores, CLASSES, picture_of))  # noqa: B023
        save_task(job.run.folder, model, is_best, fused_settings(args))
        job.save(epoch=epoch + 1, batch=0, best=best)

    majority = majority_accuracy(annotations, valid, len(CLASSES)) if valid is not None else {}
    checkpoint = "BEST.pth" if best else "LAST.pth"
    job.run.write_result(task=args.dataset, split=args.valid, checkpoint=checkpoint, **best, **majority)
    if dist.rank() == 0:
        print(f"report: {write_report(job.run.folder)}")


def picture(annotations, images, row, images_each):
    """The images of a statement beside each other, as the bytes of one."""
    return side_by_side([images.read(annotations.image_id(item)) for item in range(row, row + images_each)])


def test(device, args):
    """Judge one split and write <split>_predict.csv, the submission format; with labels, the scores as well."""
    if not args.load:
        raise UserError("--test needs the fine-tuned model: pass --load, such as --load snap/nlvr2/NAME/BEST")
    version, tokenizer = VERSIONS[args.dataset], load_tokenizer(bert_folder(args))
    images = open_images(args, TASKS[args.dataset].collection)
    annotations, dataset = load_data(args.test, tokenizer, images, version, args)
    samples = min(len(annotations) // version.images_each, args.max_eval_samples or len(annotations))
    results = SplitResults(
        args.output, args.test, samples=samples, checkpoint=checkpoint_path(args.load, ".pth"),
        data=split_paths(args, args.dataset, args.test), settings=fused_settings(args, paths=False),
        overwrite=args.overwrite,
    )  # fmt: skip
    model, _, _ = build_classifier(
        len(CLASSES), device, args, with_images=not args.question_only, images_each=version.images_each
    )
    order = eval_batches(annotations, args, version.images_each)
    predictions = judge(model, dataset, order, device, args)
    if dist.rank() != 0:
        return
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    lines = [f"{annotations.question_id(row)},{CLASSES[c[0]]}\n" for row, c, _ in predictions]
    atomic_write(folder / f"{args.test}_predict.csv", written("".join(lines)))
    print(f"{len(lines)} judgements: {folder / args.test}_predict.csv")
    if annotations.answer_totals(len(CLASSES)).any():
        _, report = score(annotations, predictions, version)
        result = {"program": "nlvr2", "task": args.dataset, "split": args.test, "checkpoint": args.load, **report}
        atomic_json(folder / f"result_{args.test}.json", result)
        print(f"{args.test}: {report['accuracy'] / 100:.4f} over {report['accuracy_n']} statements with their images,")
        print(f"consistency {report['consistency'] / 100:.4f} over {report['consistency_n']} statements")
    results.finish()


def main(args):
    device = dist.setup()
    check_fused_flags(args)
    if args.load_lxmert_qa:
        raise UserError("--loadLXMERTQA brings an answer head, but it is for one image a text; use --loadLXMERT")
    if args.test:
        test(device, args)
    else:
        train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
