"""Visual question answering: fine-tune the fused encoder, evaluate it every epoch, write the submission files.

    python -m clip_vl.vqa --output snap/vqa/NAME --loadLXMERTQA snap/pretrain/NAME/Epoch11 ...     fine-tune
    python -m clip_vl.vqa --output snap/vqa/NAME --load snap/vqa/NAME/BEST --test minival ...      score minival
    bash scripts/finetune_vqa.bash 0,1,2,3 NAME 9590 4 ...                                         four GPUs

Reads data/vqa (data/README.md). Training writes BEST.pth and LAST.pth, resumable checkpoints, log.jsonl, result.json
and report.html; testing writes minival_predict.json or test_predict.json and result_minival.json. The score is the
mean soft score of the best answer over all questions, in percent (VQA v2, arXiv:1612.00837).
"""

from dataclasses import dataclass

from clip_vl.engine.flags import flag, parse
from clip_vl.models.vl_flags import FusedEncoderFlags, check_fused_flags


@dataclass
class VQAFlags(FusedEncoderFlags):
    """Visual question answering"""

    output: str = flag("snap/vqa/test", "Run folder: settings, log, checkpoints, result and report.")
    train: str = flag("train,nominival", "Training files under <data_root>/vqa.")
    valid: str = flag("minival", "Validation file; '' for none, and then only LAST.pth is written.")
    test: str | None = flag(
        None, "Only answer this split (minival, test, ...) with --load and write its submission file."
    )
    loss_scale: int = flag(1, "Factor of the loss; 1 means the number of answers (LXMERT's convention).")
    mce_loss: bool = flag(False, "Published flag.", "--mceLoss", dead="it is an option of GQA")
    question_only: bool = flag(False, "Train and test without images: what the questions alone give away.")


FLAGS = parse(VQAFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import json
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import torch

from clip_vl.datasets.annotations import build_vqa_annotations
from clip_vl.datasets.answers import AnswerTable, read_label_vocab
from clip_vl.datasets.batches import (
    DamageCount,
    build_loader,
    eval_batches,
    open_images,
    refuse_damage,
    size_file,
    split_paths,
    to_device,
    train_batches,
)
from clip_vl.datasets.text import load_tokenizer
from clip_vl.datasets.vqa import VQADataset
from clip_vl.engine import dist
from clip_vl.engine.dry_run import dry_run
from clip_vl.engine.errors import Interrupted, UserError
from clip_vl.engine.files import atomic_json
from clip_vl.engine.meters import Meters
from clip_vl.engine.optim import Updater, autocast_dtype
from clip_vl.engine.random import seed_step
from clip_vl.engine.report import write_report
from clip_vl.engine.resume import restore_training, save_training
from clip_vl.engine.run import Run
from clip_vl.engine.signals import StopRequest
from clip_vl.evaluation.answers import answer_report
from clip_vl.evaluation.gallery import build_gallery
from clip_vl.evaluation.vqa_score import official_accuracy
from clip_vl.losses.answering import soft_answer_loss
from clip_vl.models.vl_build import bert_folder, build_encoder, build_optimizers, compile_parts, load_pretrained_parts
from clip_vl.models.vl_checkpoints import load_answer_head, load_encoder, read_checkpoint, save_plain
from clip_vl.models.vl_encoder import VLClassifier
from clip_vl.models.weights import load_weights, state_for_exchange


def forward(model, batch, args):
    """One batch through the model -> logits (B, A)."""
    boxes = batch.get("image_boxes") if args.mask_padding else None
    return model(
        batch.get("images"), batch["input_ids"], batch["attention_mask"], batch.get("image_of_text"), image_boxes=boxes
    )


def train_one_epoch(job, epoch, start, best, args):
    """The epoch's micro-batches from `start` on; updates every --gradient_accumulation_steps, and for what is left."""
    model, updater = job.model.train(), job.updater
    batches, accumulate = job.train_order.epoch(epoch), args.gradient_accumulation_steps
    if args.dry_run or args.skip_training:
        batches = batches[: accumulate if args.dry_run else 0]
    loader = build_loader(job.train_set, epoch, batches[start:], args, updater.device)
    for done, batch in enumerate(dist.progress(loader, f"epoch {epoch + 1}", args.tqdm), start + 1):
        job.damage.add(batch.get("damaged", []))
        batch = to_device(batch, updater.device)
        is_last = done % accumulate == 0 or done == len(batches)
        in_this_update = min(accumulate, len(batches) - (done - 1) // accumulate * accumulate)
        with updater.micro_batch(is_last):
            logits = forward(model, batch, args)
            loss = soft_answer_loss(logits, batch["answer_scores"], args.loss_scale, batch["usable"])
            updater.backward(loss, in_this_update)
        job.meters.add("loss", loss if args.loss_scale == 1 else loss * logits.shape[1] / args.loss_scale)
        job.meters.add("train_accuracy", 100 * accuracy(logits, batch["answer_scores"]))
        if updater.micro_step % args.report_step == 0:
            report_step(job, epoch)
        if is_last:
            norm, (stop,) = updater.step(int(bool(job.stop)))
            if norm is None:
                names = [job.train_set.annotations.question_id(int(row)) for row in batch["rows"][:4]]
                print(f"warning: update {updater.update} skipped: not finite; questions {names}...", flush=True)
            if stop or updater.update % args.checkpoint_steps == 0:
                save_training(job.run, model, updater, job.meters, args, epoch=epoch, batch=done, best=best)
            if stop:
                raise Interrupted(f"interrupted at update {updater.update} and saved; add --resume to go on")


def accuracy(logits, scores):
    """Mean soft score of the best answer, a scalar in [0, 1] on the device."""
    return scores.gather(1, logits.argmax(1, keepdim=True)).mean()


def report_step(job, epoch):
    """A row of the log over the micro-batches since the last one."""
    means = job.meters.means()
    job.meters.clear()
    now = time.perf_counter()
    seconds, job.clock = now - job.clock, now
    rates = {f"lr_{name}": rate for name, rate in job.updater.learning_rates().items()}
    row = {"step": job.updater.update, "epoch": epoch + 1, **means, **rates}
    job.run.log(**row, skipped=job.updater.skipped, samples=job.samples_per_row, seconds=seconds)


@torch.no_grad()
def predict(model, dataset, order, device, dtype, args):
    """Answers to all questions, gathered from all ranks: [(row, top five classes, their probabilities)], by row."""
    model, found = dist.unwrap(model).eval(), []
    loader = build_loader(dataset, 0, list(order), args, device)
    for batch in dist.progress(loader, "answering", args.tqdm):
        refuse_damage(batch.get("damaged", []))
        batch = to_device(batch, device)
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            logits = forward(model, batch, args)
        top = logits.float().sigmoid().topk(min(5, logits.shape[1]), dim=1)
        found += zip(batch["rows"].tolist(), top.indices.tolist(), top.values.tolist())
    return sorted(row for rows in dist.gather(found) for row in rows)


def score(annotations, predictions):
    """Soft score of each prediction's first answer, and the report by answer type and question type (percent)."""
    scores = []
    for row, classes, _ in predictions:
        ids, values = annotations.answers(row)
        scores.append(float(values[ids == classes[0]].sum()))
    types = {"answer_type": annotations.answer_type, "question_type": annotations.question_type}
    return scores, answer_report(scores, {name: [of(row) for row, *_ in predictions] for name, of in types.items()})


def load_split(splits, tokenizer, answers, args):
    """The annotations of comma-separated splits, from their cache."""
    return dist.first_rank_builds(
        lambda: build_vqa_annotations(
            split_paths(args, "vqa", splits),
            tokenizer=tokenizer,
            answers=answers,
            image_sizes=size_file(args),
            cache_root=Path(args.data_root) / "cache",
            max_length=args.max_length,
        )
    )


def build_model(num_answers, device, args):
    """The model on its device, with random, CLIP's and BERT's, a pre-trained or a fine-tuned model's weights."""
    state, path = read_checkpoint(args.load, ".pth")
    if state is None:
        state, path = read_checkpoint(args.load_lxmert_qa or args.load_lxmert)
    encoder = build_encoder(args, state, with_images=not args.question_only)
    model = VLClassifier(encoder, num_answers)
    if args.load:
        load_weights(model, state, allow_partial=args.allow_partial, source=path)
    elif state is not None:
        load_encoder(encoder, state, path, args)
    else:
        load_pretrained_parts(model, encoder, args)
    if args.load_lxmert_qa and not args.load:
        table = Path(args.data_root) / "lxmert" / "all_ans.json"
        answers = read_label_vocab(Path(args.data_root) / "vqa")
        found = load_answer_head(model.logit_fc, state, path, answers, AnswerTable(table), table)
        dist.print0(f"answer head from {path}: {found} of {num_answers} answers found, the others start at zero")
    return model.to(device, memory_format=torch.channels_last)


def train(device, args):
    """Fine-tune, evaluate every epoch, keep the best."""
    seed_step(args.seed, 0, 0)  # the same first weights on every rank
    writer = dist.rank() if not args.dry_run else -1  # a dry run leaves nothing behind
    job = SimpleNamespace(device=device, stop=StopRequest(), meters=Meters(device), clock=time.perf_counter())
    job.run = run = Run(args.output, asdict(args), "vqa", args.resume, args.overwrite, writer, str(device))
    job.samples_per_row = args.batch_size * dist.world_size() * args.report_step
    tokenizer, answers = load_tokenizer(bert_folder(args)), read_label_vocab(Path(args.data_root) / "vqa")
    images, sees = open_images(args), not args.question_only

    annotations = load_split(args.train, tokenizer, answers, args)
    job.damage = DamageCount(annotations, args)
    job.train_set = VQADataset(annotations, images, args, num_answers=len(answers), with_images=sees)
    job.train_order = train_batches(annotations, args)
    valid = load_split(args.valid, tokenizer, answers, args) if args.valid else None
    if valid is not None:
        valid_set = VQADataset(valid, images, args, num_answers=len(answers), with_images=sees)
        valid_order = eval_batches(valid, args)

    model = build_model(len(answers), device, args)
    if args.compile:
        compile_parts(model)
    job.model = dist.wrap(model, device)
    updates_per_epoch = -(-len(job.train_order) // args.gradient_accumulation_steps)
    job.updater = Updater(
        job.model,
        build_optimizers(job.model, args, updates_per_epoch),
        device=device,
        dtype=autocast_dtype(device, args.bf16, args.fp16),
        max_grad_norm=args.max_grad_norm,
        max_skipped=args.max_skipped,
        seed=args.seed,
    )
    last_epoch, position = args.stop_after_epoch or args.epochs, {"epoch": args.start_epoch, "batch": 0, "best": {}}
    if args.dry_run:
        updates = last_epoch * updates_per_epoch
        return dry_run(lambda: train_one_epoch(job, 0, 0, {}, args), updates, device)
    position = restore_training(run, job.model, job.updater, job.meters, args) or position

    best = position["best"]
    for epoch in range(position["epoch"], last_epoch):
        train_one_epoch(job, epoch, position["batch"] if epoch == position["epoch"] else 0, best, args)
        weights = state_for_exchange(model) if dist.rank() == 0 else None
        if valid is not None:
            predictions = predict(job.model, valid_set, valid_order, device, job.updater.dtype, args)
            scores, report = score(valid, predictions)
            run.log(step=job.updater.update, epoch=epoch + 1, **overview(report))
            job.clock = time.perf_counter()
            if report["accuracy"] > best.get("accuracy", -1):
                best = report | {"epoch": epoch + 1}
                if dist.rank() == 0:
                    save_plain(run.folder / "BEST.pth", weights)
                    read = images.read if sees else None
                    atomic_json(run.folder / "gallery.json", build_gallery(valid, predictions, scores, answers, read))
        if dist.rank() == 0:
            save_plain(run.folder / "LAST.pth", weights)
        save_training(run, job.model, job.updater, job.meters, args, epoch=epoch + 1, batch=0, best=best)

    majority = majority_accuracy(annotations, valid, len(answers)) if valid is not None else {}
    run.write_result(task="vqa", split=args.valid, checkpoint="BEST.pth" if best else "LAST.pth", **best, **majority)
    if dist.rank() == 0:
        print(f"report: {write_report(run.folder)}")


def overview(report):
    """What a row of the log holds of a report: the accuracy, and the one of each answer type."""
    wanted = ("accuracy_n", "accuracy_low", "accuracy_high")
    return {f"valid_{n}": v for n, v in report.items() if n == "accuracy" or n in wanted or is_answer_type(n)}


def is_answer_type(name):
    return name.startswith("accuracy/answer_type/") and not name.endswith(("_n", "_low", "_high"))


def majority_accuracy(train, valid, num_answers):
    """{"majority_accuracy": percent} of always giving the answer that earns most on the training questions."""
    best = int(train.answer_totals(num_answers).argmax())
    return {"majority_accuracy": 100 * float(valid.answer_totals(num_answers)[best]) / len(valid)}


def test(device, args):
    """Answer one split and write <split>_predict.json, the submission format; with labels, the score as well."""
    if not args.load:
        raise UserError("--test needs the fine-tuned model: pass --load, such as --load snap/vqa/NAME/BEST")
    answers = read_label_vocab(Path(args.data_root) / "vqa")
    annotations = load_split(args.test, load_tokenizer(bert_folder(args)), answers, args)
    dataset = VQADataset(
        annotations, open_images(args), args, num_answers=len(answers), with_images=not args.question_only
    )
    model = build_model(len(answers), device, args)
    dtype = autocast_dtype(device, args.bf16, args.fp16)
    predictions = predict(model, dataset, eval_batches(annotations, args), device, dtype, args)
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


def official_report(args, rows):
    """{"official_accuracy": percent} by the official evaluator, where the split's official annotations are on disk."""
    given = {row["question_id"]: row["answer"] for row in rows}
    for name in (f"v2_mscoco_{args.test}2014_annotations.json", "v2_mscoco_val2014_annotations.json"):
        path = Path(args.data_root) / "vqa" / name
        if path.is_file():
            annotations = [a for a in json.loads(path.read_bytes())["annotations"] if a["question_id"] in given]
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
