"""Image classification: fine-tune the image encoder of S-SMKE or Data2Vec2, or train a linear layer on it.

    python -m clip_vl.imagenet --dataset data/imagenet --load snap/distill/NAME/best.pt --output snap/imagenet/NAME
    python -m clip_vl.imagenet ... --linear_eval                         the encoder stays as it is
    python -m clip_vl.imagenet --dataset torchvision:CIFAR10 --layer_decay 0.75 --batch_size 128 ...
    bash scripts/imagenet.bash 0 NAME 9590 1 --dataset data/imagenet --load ...       on a GPU

The mean of the patch tokens, LayerNorm and a linear layer; RandAugment, mixup, CutMix and random erasing; a learning
rate that falls by --layer_decay from layer to layer. The loss sums over the classes; --compat_mean_loss divides it by
their number as the published code does. Writes BEST.pth, resumable checkpoints, log.jsonl, result.json and report.html.
"""

from dataclasses import dataclass

from clip_vl.flags.classes import ClassSetFlags
from clip_vl.flags.distill import UpdateFlags
from clip_vl.flags.parser import flag, parse
from clip_vl.flags.run import RunFlags


@dataclass
class ImagenetFlags(RunFlags, ClassSetFlags, UpdateFlags):
    """Image classification"""

    datasets_dir: str = flag("data", "Folder of named datasets and of caches.")
    train_split: str = flag("train", "Split that is trained on.")
    test_split: str = flag("val", "Split that is evaluated after each epoch.")
    load: str | None = flag(None, "S-SMKE checkpoint whose image encoder is used.", "--checkpoint")
    data2vec2_ckpt: str | None = flag(None, "File of Data2Vec2's image encoder, where there is no --load.")
    heads: int = flag(12, "Attention heads of the image encoder.")
    image_blocks: int = flag(6, "Blocks of Data2Vec2's encoder that are used, from the first.")
    linear_eval: bool = flag(False, "Train LayerNorm and linear layer alone.")
    pooling: str = flag("patches", "Feature of an image: mean of the patches, or the class token.",
                        choices=["patches", "cls"])  # fmt: skip
    probe_aug: str = flag("heavy", "Augmentation: heavy as published, or light: crop and flip alone, hard labels.",
                          choices=["heavy", "light"])  # fmt: skip
    mixup: float = flag(0.8, "Parameter of mixup's Beta distribution; 0 for none.")
    cutmix: float = flag(1.0, "Parameter of CutMix's Beta distribution; 0 for none.")
    mix_prob: float = flag(0.9, "Probability that a batch is mixed.")
    smoothing: float = flag(0.1, "Label smoothing.")
    erase: float = flag(0.25, "Share of the training images with a random box of noise.")
    compat_mean_loss: bool = flag(False, "Divide the loss by the number of classes, as published.")
    epochs: int = flag(15, "Passes over the training data.")
    batch_size: int = flag(256, "Images per process and micro-batch.")
    lr: float = flag(1e-3, "Peak learning rate of the head.")
    layer_decay: float = flag(0.81, "Factor of the learning rate from each layer to the one below.")
    weight_decay: float = flag(0.01, "Decoupled weight decay of all parameters.")
    max_damaged: float = flag(0.001, "Largest share of damaged training images that is tolerated.")


FLAGS = parse(ImagenetFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from functools import partial

import numpy as np
import torch

from clip_vl.datasets.captions.episodes import PlainBatches
from clip_vl.datasets.classes.class_set import ClassImages, check_same_classes
from clip_vl.datasets.classes.sets import open_class_set
from clip_vl.datasets.images.augment import AugmentedImages, erase
from clip_vl.datasets.images.crops import EvalCrop
from clip_vl.datasets.loader import DamagedPairs, evaluation_loader, training_loader
from clip_vl.encoding.encode import collect, shares
from clip_vl.engine import dist
from clip_vl.engine.checkpoint import save_plain
from clip_vl.engine.errors import UserError
from clip_vl.engine.random import numpy_rng
from clip_vl.engine.run import open_run
from clip_vl.engine.schedules import cosine
from clip_vl.evaluation.class_scores import class_scores
from clip_vl.losses.distill.soft_targets import mix_images, smooth_one_hot, soft_target_loss
from clip_vl.models.distill.build import load_image_encoder
from clip_vl.models.distill.classifiers import ImageClassifier, decayed_groups
from clip_vl.models.distill.teachers import IMAGENET_MEAN, IMAGENET_STD
from clip_vl.models.towers.pixels import normalise
from clip_vl.reports.classes import class_gallery
from clip_vl.reports.page import write_report


def pixels(images):
    """uint8 (B, 3, S, S) -> float, normalised by ImageNet's statistics."""
    mean, std = (torch.tensor(v, device=images.device)[:, None, None] for v in (IMAGENET_MEAN, IMAGENET_STD))
    return normalise(images, mean, std)


def mixed(batch, classes, step, args):
    """(normalised images, soft targets (B, C)): erased and mixed as published, or plain with --probe_aug light."""
    images = pixels(batch["images"])
    if args.probe_aug == "light":
        return images, smooth_one_hot(batch["labels"], classes)
    rng = numpy_rng(args.seed, "mix", step, dist.rank())
    images = erase(images, rng, args.erase)
    return mix_images(images, batch["labels"], classes, rng, mixup=args.mixup, cutmix=args.cutmix, prob=args.mix_prob,
                      smoothing=args.smoothing)  # fmt: skip


def predict(model, images, resolution, device, autocast, args):
    """Probabilities (N, C) of the images of a `ClassSet`, computed by all processes."""
    model.eval()
    mine = shares(np.arange(len(images)), args.batch_size, dist.rank(), dist.world_size())
    loader = evaluation_loader(ClassImages(images, EvalCrop(resolution)), mine, device, args)
    return collect(lambda batch: model(pixels(batch["images"])).softmax(1), zip(mine, loader), autocast).numpy()


def train(device, args):
    """Train, evaluate every epoch, keep the best."""
    run = open_run("imagenet", args.run(), device, write_report)
    steps = args.steps(args.batch_size, args.epochs)
    images, valid = (open_class_set(args.class_source(), split) for split in (args.train_split, args.test_split))
    check_same_classes(images, valid)
    run.watch_data(**{"--train_split": images.digest, "--test_split": valid.digest})
    encoder, classes = (
        load_image_encoder(args.load, args.data2vec2_ckpt, args.heads, args.image_blocks),
        len(images.class_names),
    )
    resolution = encoder.spec.resolution
    model = ImageClassifier(encoder, classes, args.pooling, args.linear_eval).to(device)
    samples = AugmentedImages(images, resolution, args.seed, heavy=args.probe_aug == "heavy")
    load = partial(training_loader, samples, damage=DamagedPairs(len(images), args), device=device, args=args)
    order = PlainBatches(len(images), args.batch_size, rank=dist.rank(), world_size=dist.world_size(), seed=args.seed)
    optimizer = torch.optim.AdamW(decayed_groups(model, args.lr, args.layer_decay, args.weight_decay), fused=True)
    total = args.epochs * steps.updates_per_epoch(len(order))
    updater = run.start(model, {"all": (optimizer, cosine(total, args.warmup_ratio))}, steps, batches=len(order),
                        name_of=lambda row: images.ids[row])  # fmt: skip

    for epoch in run.epochs():
        for batch in run.batches(order.epoch(epoch), load):
            views, targets = mixed(batch, classes, updater.micro_step, args)
            with updater.forward():
                loss = soft_target_loss(updater.model(views), targets, args.compat_mean_loss)
            updater(loss, {"loss": loss})
        run.save()
        scores = predict(dist.unwrap(updater.model), valid, resolution, device, updater.autocast(), args)
        report = class_scores(scores, valid.labels, valid.metric, args.seed)
        run.log(epoch, **{f"valid_{name}": value for name, value in report.items()})
        if run.keep(report, next(iter(report)), partial(class_gallery, valid, scores)) and dist.rank() == 0:
            save_plain(run.folder / "BEST.pth", model.state_dict())
    run.finish(task="classification", dataset=args.dataset, split=args.test_split, checkpoint="BEST.pth", **run.best)


def main(args):
    device = dist.setup()
    if not args.output:
        raise UserError("--output names the folder that the run writes to")
    if not (args.load or args.data2vec2_ckpt):
        raise UserError("--load names a checkpoint of `distill`, or --data2vec2_ckpt Data2Vec2's file")
    train(device, args)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
