"""S-SMKE: align an image and a text encoder by distillation from one frozen image teacher.

    python -m clip_vl.distill --output snap/distill/NAME --train_data coco.csv --data2vec2_ckpt base_imagenet.pt \
        --bert cache/weights/bert-base-uncased --teacher_ckpt beitv2_base_patch16_224_pt1k.pth
    python -m clip_vl.distill --output snap/retrieval/NAME --load snap/distill/NAME/epoch_7.pt --kd none \
        --teacher none --itc_layers final --lr 3e-5 ...                          retrieval fine-tuning
    bash scripts/distill.bash 0,1 NAME 9590 2 --train_data ...                   two GPUs

The teacher sees the image; the student sees image and caption, each through its encoder and one shared Transformer
layer. Both outputs must find the teacher's target of their image among the batch and a bank of earlier targets
(--kd bank), and each other (image-text contrast). `--teacher supervised` with class logits as targets is SHRe. Writes
epoch_N.pt, best.pt by mean recall of --valid_data, resumable checkpoints, log.jsonl, result.json and report.html.
"""

from dataclasses import dataclass

from clip_vl.flags.captions import PairFlags, encoder_of
from clip_vl.flags.distill import StudentFlags, TeacherFlags, UpdateFlags
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.run import RunFlags


@dataclass
class DistillFlags(RunFlags, PairFlags, StudentFlags, TeacherFlags, UpdateFlags):
    """Distillation"""

    batch_size: int = flag(256, "Pairs per process and micro-batch.")
    epochs: int = flag(7, "Passes over the training data.")
    max_steps: int | None = flag(None, "Updates after which training ends, and its schedule with it.")
    base_lr: float = flag(1e-4, "Peak learning rate per 256 pairs of the global batch.")
    lr: float | None = flag(None, "Peak learning rate itself [--base_lr times the global batch / 256].")
    weight_decay: float = flag(0.01, "Decoupled weight decay of matrices other than embeddings.")
    amr: bool = flag(False, "Add the average median rank over five parts of --valid_data, as published for COCO.")


FLAGS = parse(DistillFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from functools import partial

import torch

from clip_vl.datasets.captions.batches import AlignDataset
from clip_vl.datasets.captions.episodes import training_order
from clip_vl.datasets.captions.sources import open_held_out, open_sources
from clip_vl.datasets.images.crops import EvalCrop, TrainCrop
from clip_vl.datasets.images.views import Jittered, TwoViews
from clip_vl.datasets.loader import DamagedPairs, training_loader
from clip_vl.encoding.held_out import HeldOutPairs
from clip_vl.engine import dist
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import UserError
from clip_vl.engine.run import open_run
from clip_vl.engine.schedules import cosine
from clip_vl.evaluation.published_retrieval import average_median_ranks
from clip_vl.evaluation.recall import retrieval_metrics
from clip_vl.losses.distill.contrast import image_text_contrast
from clip_vl.losses.distill.targets import (
    BankDistillation,
    batch_distillation,
    class_distillation,
    mse_distillation,
)
from clip_vl.models.distill.build import build_student
from clip_vl.models.distill.learner import Learner, distill_groups
from clip_vl.models.distill.teachers import build_teacher
from clip_vl.models.loading.hf_files import load_tokenizer
from clip_vl.models.towers.hf_tokens import HuggingFaceTokenizer
from clip_vl.models.towers.pixels import normalise
from clip_vl.reports.answers import retrieval_gallery
from clip_vl.reports.page import write_report


def build_models(args, device):
    """(the student in training, the frozen teacher or None)."""
    spec = args.image_teacher()
    if spec.kind != "none" and not spec.checkpoint and not args.random_init:
        raise UserError(f"--teacher_ckpt names the file of {spec.kind}'s weights; --random_init starts without")
    teacher = build_teacher(spec)
    spec = args.student(teacher.width if teacher else 0)
    student = build_student(spec, args.bert, args.data2vec2_ckpt, args.load, args.random_init)
    if args.kd == "none":  # nothing reads the head
        student.head.requires_grad_(False)
        student.fc_norm.requires_grad_(False)
    return Learner(student, args.learn_kd_temp).to(device), teacher and teacher.to(device)


def build_crop(args):
    """The training view, or with --teacher_view independent that of the student and that of the teacher."""
    plain = TrainCrop(args.image_resolution, "torchvision-late" if args.hflip else "openclip")
    jittered = Jittered(plain, args.jitter) if args.jitter else plain
    return TwoViews(plain, jittered) if args.teacher_view == "independent" else jittered


def teacher_targets(teacher, images):
    """The teacher's targets (B, width), raw, of uint8 images."""
    mean, std = (torch.tensor(values, device=images.device)[:, None, None] for values in (teacher.mean, teacher.std))
    return teacher(normalise(images, mean, std))


def distillation(outputs, targets, bank, image_ids, args):
    """{name: scalar} of the distillation loss: equation for --kd and the kind of target."""
    images, texts = outputs["image"]["encoder_out"], outputs["text"]["encoder_out"]
    if args.teacher == "supervised":
        return class_distillation(images, texts, targets)
    if args.kd == "mse":
        return mse_distillation(images, texts, targets)
    loss = bank or batch_distillation
    return loss(images, texts, targets, outputs["kd_scale"], image_ids)


def contrast(outputs, image_ids, layers):
    """The mean of image-text contrast over outputs of the shared layer, and {name: accuracy} of each."""
    losses, accuracies = [], {}
    for name, scale in zip(("x_interm", "x"), outputs["logit_scales"].exp()):
        if name == "x" or layers == "both":
            loss, found = image_text_contrast(outputs["image"][name], outputs["text"][name], scale, image_ids)
            losses.append(loss)
            accuracies |= {f"{name}_itc_{key}": value for key, value in found.items()}
    return sum(losses) / len(losses), accuracies


def train(device, args):
    """Distil, evaluate every epoch, keep the best by mean recall."""
    run = open_run("distill", args.run(), device, write_report)
    steps = args.steps(args.batch_size, args.epochs)
    learner, teacher = build_models(args, device)
    tokenizer = HuggingFaceTokenizer(load_tokenizer(args.bert), args.max_length)
    source = open_sources(args.train_data, args.caption_options())
    held_out = open_held_out(args.valid_data, args.caption_options())
    run.watch_data(**{"--train_data": source.digest, "--valid_data": held_out and held_out.digest})
    samples = AlignDataset(source, build_crop(args), tokenizer, args.seed)
    load = partial(training_loader, samples, damage=DamagedPairs(len(source), args), device=device, args=args)
    order = training_order(source, args.batch_size, rank=dist.rank(), world_size=dist.world_size(), seed=args.seed)
    valid = held_out and HeldOutPairs(
        held_out, EvalCrop(args.image_resolution, crop="squash"), tokenizer, encoder_of(args, device)
    )
    dtype = torch.bfloat16 if args.bf16 and device.type == "cuda" else torch.float32
    bank = BankDistillation(teacher.width, args.bank_size, dtype, args.bank_init, args.bank_candidates,
                            args.mask_same_image, args.seed).to(device) if uses_bank(args) else None  # fmt: skip

    global_batch = args.batch_size * dist.world_size() * args.gradient_accumulation_steps
    lr = args.base_lr * global_batch / 256 if args.lr is None else args.lr
    per_epoch = steps.updates_per_epoch(len(order))
    total = min(args.epochs * per_epoch, args.max_steps or 10**12)
    dist.print0(f"{len(source):,} pairs, {total:,} updates of {global_batch}, learning rate {lr:g}, "
                f"warm-up {int(total * args.warmup_ratio):,}")  # fmt: skip
    optimizer = torch.optim.AdamW(distill_groups(learner, lr, args.weight_decay), betas=(0.9, 0.98), eps=1e-6,
                                  fused=True)  # fmt: skip
    schedules = {"all": (optimizer, cosine(total, args.warmup_ratio))}
    beside = {"bank": bank} if bank else {}
    updater = run.start(
        learner, schedules, steps, batches=len(order), updates=total, name_of=source.name, beside=beside
    )

    for epoch in run.epochs():
        left = max(0, total - epoch * per_epoch) * steps.accumulate  # the last epoch ends with --max_steps
        for batch in run.batches(order.epoch(epoch), load, most=left):
            student_view, teacher_view = batch["images"][:, :3], batch["images"][:, -3:]
            image_ids = batch["image_ids"] if args.mask_same_image else None
            with updater.forward():
                targets = teacher_targets(teacher, teacher_view) if args.kd != "none" else None
                outputs = updater.model(batch | {"images": student_view})
                learner.model.clamp_scales()
                itc_loss, values = contrast(outputs, image_ids, args.itc_layers)
                loss = itc_loss
                if args.kd != "none":
                    values |= distillation(outputs, targets, bank, image_ids, args)
                    loss = values["kd_loss"] + itc_loss
            updater(loss, {"loss": loss, "itc_loss": itc_loss} | values)
            if bank is not None:  # after the backward pass, which reads it
                bank.remember(targets, image_ids)
        run.save()
        is_best, model = False, dist.unwrap(updater.model)
        if valid:
            found = valid.encode(model)
            metrics = retrieval_metrics(*found, valid.image_of_text)
            if args.amr:
                metrics |= average_median_ranks(*found, valid.image_of_text)
            run.log(epoch, **{f"valid_{name}": value for name, value in metrics.items()})
            is_best = run.keep(metrics, "mean_recall", partial(retrieval_gallery, valid, *found))
        save_epoch(run.folder, model, epoch, is_best)
    checkpoint = "best.pt" if run.best else f"epoch_{steps.last_epoch}.pt"
    run.finish(task="retrieval", split=args.valid_data, checkpoint=checkpoint, **run.best)


def uses_bank(args):
    return args.kd == "bank" and args.teacher != "supervised"


def save_epoch(folder, model, epoch, is_best):
    """Rank 0 writes epoch_N.pt and best.pt, in the layout of the published checkpoints."""
    if dist.rank() == 0:
        content = {"epoch": epoch + 1, "name": folder.name, "state_dict": model.state_dict()}
        for name in (f"epoch_{epoch + 1}.pt", *(["best.pt"] if is_best else [])):
            save_plain(folder / name, content)


def main(args):
    device = dist.setup()
    if not args.output:
        raise UserError("--output names the folder that the run writes to")
    if (args.teacher == "none") != (args.kd == "none"):
        raise UserError("--teacher none and --kd none belong together: without a teacher there is nothing to distil")
    train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
