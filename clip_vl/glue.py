"""GLUE: fine-tune a text encoder on the nine tasks of natural language understanding and score it.

    python -m clip_vl.glue --task mrpc --glue data/glue --bert cache/weights/bert-base-uncased --output snap/glue/mrpc
    python -m clip_vl.glue --task all --glue data/glue --load snap/distill/NAME/LAST.pth --output snap/glue/s_smke
    bash scripts/glue.bash 0 NAME 9590 1 --task all --glue data/glue --bert ...                    on a GPU

The encoder, BERT's pooler on its first token, dropout and a linear layer (arXiv:1810.04805, section 4.1). --load takes
the text encoder of an S-SMKE checkpoint; its pooler and configuration come from --bert. Learning rate, batch size and
epochs are those of the published table unless they are given. Scores are computed over the whole development set;
--compat_batch_means adds the published means over minibatches. Writes BEST.pth, resumable checkpoints, log.jsonl,
result.json and report.html; --submit also the test split's file for the GLUE server.
"""

from dataclasses import dataclass

from clip_vl.flags.distill import UpdateFlags
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.run import RunFlags

NAMES = ("cola", "sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte", "wnli")


@dataclass
class GlueFlags(RunFlags, UpdateFlags):
    """GLUE"""

    task: str = flag("mrpc", "Task, or all for the nine of them in folders below --output.", choices=[*NAMES, "all"])
    glue: str = flag("data/glue", "Folder of the tasks: GLUE's TSV files, or folders of the Hugging Face hub.")
    bert: str = flag("cache/weights/bert-base-uncased", "Folder of a BERT model: configuration, vocabulary, weights.")
    load: str | None = flag(None, "S-SMKE checkpoint whose text encoder is fine-tuned.", "--checkpoint")
    layers: int | None = flag(None, "Layers of --bert that are used, from the first [all].")
    random_init: bool = flag(False, "Random weights in the place of --bert's.")
    lr: float | None = flag(None, "Peak learning rate [1e-5 for cola and wnli, 4e-5 for stsb, else 2e-5].")
    batch_size: int | None = flag(None, "Texts per process and micro-batch [8 to 128 by task].")
    epochs: int | None = flag(None, "Passes over the training data [10 for mnli, qnli, qqp and sst2, else 20].")
    weight_decay: float = flag(0.1, "Decoupled weight decay of all parameters.")
    dropout: float = flag(0.1, "Dropout of the encoder and before the classifier.")
    max_length: int = flag(256, "Tokens of a text or pair at most.")
    max_train_samples: int | None = flag(None, "Training texts at most, the first ones.")
    max_eval_samples: int | None = flag(None, "Evaluated texts at most, the first ones.")
    compat_batch_means: bool = flag(False, "Add the published scores: unweighted means over minibatches.")
    submit: bool = flag(False, "Write the predictions of the test split for the GLUE server.")


FLAGS = parse(GlueFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from clip_vl.datasets.captions.episodes import PlainBatches
from clip_vl.datasets.text.batches import by_length, encode_texts
from clip_vl.datasets.storage.cache import sha256
from clip_vl.datasets.text.glue import TASKS, find_split, read_glue, submission
from clip_vl.encoding.encode import collect
from clip_vl.engine import dist
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import atomic_json, atomic_write
from clip_vl.engine.run import open_run
from clip_vl.engine.schedules import linear_to
from clip_vl.evaluation.glue_scores import batch_mean_scores, glue_scores
from clip_vl.models.distill.build import build_text_encoder, load_text_encoder
from clip_vl.models.distill.classifiers import TextClassifier
from clip_vl.models.loading.hf_files import load_tokenizer
from clip_vl.reports.page import write_report

LAST_LR = 1e-7


def build_model(args, classes):
    """The classifier, its pooler from --bert where that has one."""
    encoder, pooler = build_text_encoder(args.bert, args.layers, args.dropout, args.random_init)
    if args.load:
        encoder = load_text_encoder(args.load, args.bert, args.dropout)
    model = TextClassifier(encoder, classes, args.dropout)
    if pooler:
        model.pooler.dense.load_state_dict({name.removeprefix("dense."): tensor for name, tensor in pooler.items()})
    return model


def load_split(args, split, tokenizer, most):
    """The texts of a split as token ids, with their labels where it has some."""
    texts = read_glue(args.glue, args.task, split)
    if texts.left_out:
        dist.print0(f"{args.task} {split}: {texts.left_out} rows without all columns are left out")
    second = texts.second and texts.second[:most]
    labels = None if texts.labels is None else texts.labels[:most]
    return encode_texts(tokenizer, texts.first[:most], second, labels, args.max_length)


def predict(model, texts, batch_size, device, autocast):
    """Logits (N, C) or scores (N,) of all texts, computed by all processes."""
    model.eval()
    batches = by_length(texts, batch_size)[dist.rank() :: dist.world_size()]
    numbered = ((rows, texts.batch(rows, device)) for rows in batches)
    outputs = collect(partial(classify, model), numbered, autocast).numpy()
    return outputs[:, 0] if outputs.shape[1] == 1 else outputs


def classify(model, batch):
    """(B, C)."""
    return model(batch["input_ids"], batch["attention_mask"], batch["segment_ids"])


def evaluate(model, splits, task, batch_size, device, autocast, compat=False):
    """Scores in percent of the evaluated splits; those of MNLI's mismatched set end in _mismatched."""
    report = {}
    for name, texts in splits.items():
        outputs = predict(model, texts, batch_size, device, autocast)
        scores = glue_scores(outputs, texts.labels, task.metric)
        if compat:
            scores |= batch_mean_scores(outputs, texts.labels, task.metric, batch_size)
        ending = "_mismatched" if name == "dev_mismatched" else ""
        report |= {f"{score}{ending}": value for score, value in scores.items()}
    return report


def train(args, device):
    """Fine-tune on one task, evaluate every epoch, keep the best -> its scores."""
    task = TASKS[args.task]
    steps = args.steps(args.batch_size or task.batch_size, args.epochs or task.epochs)
    run = open_run("glue", args.run(), device, write_report)
    tokenizer = load_tokenizer(args.bert)
    texts = load_split(args, "train", tokenizer, args.max_train_samples)
    splits = {split: load_split(args, split, tokenizer, args.max_eval_samples) for split in task.evaluated}
    used = ("train", *task.evaluated)
    run.watch_data(**{"--glue": {split: sha256(find_split(args.glue, args.task, split)) for split in used}})
    order = PlainBatches(len(texts), steps.batch_size, rank=dist.rank(), world_size=dist.world_size(), seed=args.seed)

    model = build_model(args, task.classes).to(device)
    lr = task.lr if args.lr is None else args.lr
    total = steps.last_epoch * steps.updates_per_epoch(len(order))
    dist.print0(f"{args.task}: {len(texts):,} texts, {total:,} updates, learning rate {lr:g}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), eps=1e-6,
                                  weight_decay=args.weight_decay, fused=True)  # fmt: skip
    schedule = linear_to(total, args.warmup_ratio, LAST_LR / max(lr, LAST_LR))
    updater = run.start(model, {"all": (optimizer, schedule)}, steps, batches=len(order))

    for epoch in run.epochs():
        for batch in run.batches(order.epoch(epoch), lambda _, rows: (texts.batch(part, device) for part in rows)):
            with updater.forward():
                logits = classify(updater.model, batch).float()
                loss = (
                    F.cross_entropy(logits, batch["labels"])
                    if task.labels
                    else F.mse_loss(logits[:, 0], batch["labels"])
                )
            updater(loss, {"loss": loss})
        run.save()
        report = evaluate(dist.unwrap(updater.model), splits, task, steps.batch_size, device, updater.autocast(),
                          args.compat_batch_means)  # fmt: skip
        run.log(epoch, **report)
        if run.keep(report, task.metric) and dist.rank() == 0:
            save_plain(run.folder / "BEST.pth", model.state_dict())
    if args.submit:
        dist.barrier()
        submit(args, model, task, tokenizer, steps.batch_size, device, updater.autocast(), run.folder)
    run.finish(task=f"glue {args.task}", split=", ".join(task.evaluated), checkpoint="BEST.pth", **run.best)
    return run.best


def submit(args, model, task, tokenizer, batch_size, device, autocast, folder):
    """Write the best weights' predictions of the test splits in the GLUE server's form."""
    model.load_state_dict(torch.load(folder / "BEST.pth", map_location=device, weights_only=True))
    for split in ("test_matched", "test_mismatched") if args.task == "mnli" else ("test",):
        outputs = predict(model, load_split(args, split, tokenizer, None), batch_size, device, autocast)
        name, text = submission(args.task, split, outputs.argmax(1) if task.labels else outputs)
        if dist.rank() == 0:
            atomic_write(folder / name, text.encode())


def train_all(args, device):
    """Every task in a folder below --output, and result.json there: each headline score and their mean."""
    scores = {}
    for name in NAMES:
        best = train(replace(args, task=name, output=str(Path(args.output) / name)), device)
        scores[name] = best[TASKS[name].metric]
    scores["score"] = float(np.mean(list(scores.values())))
    if dist.rank() == 0:
        atomic_json(Path(args.output) / "result.json", {"program": "glue", "task": "glue", **scores})
        print("  ".join(f"{name} {value:.2f}" for name, value in scores.items()), flush=True)


def main(args):
    device = dist.setup()
    if not args.output:
        raise UserError("--output names the folder that the run writes to")
    if args.task == "all":
        train_all(args, device)
    else:
        train(args, device)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
