"""k-nearest-neighbour classification of an image tower's features: nothing is trained, so it evaluates the features.

    python -m clip_vl.knn --dataset data/shapes_pairs --load snap/align/NAME/epoch_2.pt --output snap/knn/NAME
    python -m clip_vl.knn --dataset torchvision:STL10 --datasets_dir data/torchvision --image_model RN50 \
        --pretrained_image_model --output snap/knn/stl10
    bash scripts/knn.bash 0,1 NAME 9590 2 --dataset elevater:dtd --load ...                    two GPUs

The k training images nearest to a test image by cosine vote with exp(cosine / temperature) (arXiv:1805.01978). Features
are those of the tower, before any projection head; they are encoded once and shared with the other programs. Writes
samples.jsonl, result.json and report.html; the same command resumes an interrupted run.
"""

from dataclasses import dataclass

from clip_vl.flags.classes import ClassSetFlags, TrainSplitFlags
from clip_vl.flags.dual import ImageTowerFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.evaluation import EvaluationFlags
from clip_vl.flags.parser import flag, parse


@dataclass
class KNNFlags(EvaluationFlags, ClassSetFlags, TrainSplitFlags, ImageTowerFlags, TextTowerFlags, SharedTowerFlags):
    """k nearest neighbours"""

    k: int = flag(20, "Number of nearest training images that vote.")
    temperature: float = flag(0.07, "Temperature of the vote exp(cosine / temperature) of a neighbour.")
    gallery: int = flag(24, "Images shown in the report.")


FLAGS = parse(KNNFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import torch

from clip_vl.datasets.classes.sets import open_class_set, open_training
from clip_vl.encoding.classes import image_features
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.evaluation.class_scores import class_scores, top_ties
from clip_vl.evaluation.neighbours.knn import knn_scores
from clip_vl.models.dual.sides import open_image_side
from clip_vl.reports.classes import class_gallery, sample_rows
from clip_vl.reports.page import write_report


def main(args):
    device = dist.setup()
    args = recalled(args)
    if args.temperature <= 0:
        raise UserError(f"--temperature {args.temperature} must be above 0")
    run = EvaluationRun("knn", args.run(), device, write_report)
    source, encoder = args.class_source(), args.encoder(device)
    test = open_class_set(source, args.test_split)
    train = open_training(source, args.train_split, test)
    if not 1 <= args.k <= len(train):
        raise UserError(f"--k {args.k} must be from 1 to {len(train)}, the number of training images")
    side = open_image_side(args.towers(), device)
    if run.begin({"train": train.digest, "test": test.digest, "tower": side.digest}):
        return dist.print0(f"{args.output} holds this evaluation already; --overwrite repeats it")

    train_features, test_features = (
        image_features(images, side, encoder, args.image_crop, run.stop).to(device) for images in (train, test)
    )
    labels = torch.from_numpy(train.labels)
    scores = knn_scores(train_features, labels, test_features, len(test.class_names), args.k, args.temperature).numpy()
    found = class_scores(scores, test.labels, test.metric, args.seed, votes=True)
    protocol = {"metric": test.metric, "k": args.k, "temperature": args.temperature, "train": train.title,
                "train_images": len(train), "classes": len(test.class_names), "ties": top_ties(scores),
                "features": "tower, normalised"}  # fmt: skip
    result = {"task": "knn", "dataset": args.dataset, "split": args.test_split, "checkpoint": args.load, **found,
              "protocol": protocol}  # fmt: skip
    gallery = class_gallery(test, scores, args.gallery, args.seed) if dist.rank() == 0 else None
    run.finish(sample_rows(test, scores), result, gallery)
    dist.print0(f"{test.title}: {test.metric} {found[test.metric]:.2f} of {len(test):,} images")


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
