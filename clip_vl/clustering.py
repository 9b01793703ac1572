"""k-means of image features: are images of one class close to each other?

    python -m clip_vl.clustering --dataset data/shapes_pairs --load snap/align/N/epoch_2.pt --output snap/clusters/N
    bash scripts/clustering.bash 0,1 NAME 9590 2 --dataset elevater:dtd --load ...             two GPUs

The test images' features in the joint space, L2-normalised, go into as many clusters as there are classes: 100
iterations, the best of 5 starts. Reports adjusted and normalised mutual information (AMI, NMI), the adjusted Rand index
(ARI) and the accuracy after the best matching of clusters with classes. Writes samples.jsonl, result.json, report.html.
"""

from dataclasses import dataclass

from clip_vl.flags.classes import ClassSetFlags
from clip_vl.flags.dual import ImageTowerFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.evaluation import EvaluationFlags
from clip_vl.flags.parser import flag, parse


@dataclass
class ClusteringFlags(EvaluationFlags, ClassSetFlags, ImageTowerFlags, TextTowerFlags, SharedTowerFlags):
    """Clustering"""

    clusters: int | None = flag(None, "Number of clusters [the number of classes].")
    iterations: int = flag(100, "Largest number of iterations of k-means.")
    restarts: int = flag(5, "Number of starts of k-means; the one with the smallest distances counts.")


FLAGS = parse(ClusteringFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import numpy as np

from clip_vl.datasets.classes.sets import open_class_set
from clip_vl.encoding.classes import image_features
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError, printable
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.evaluation.clusters import cluster, cluster_scores
from clip_vl.models.dual.sides import open_image_side
from clip_vl.reports.classes import confusion
from clip_vl.reports.page import write_report


def main(args):
    device = dist.setup()
    args = recalled(args)
    run = EvaluationRun("clustering", args.run(), device, write_report)
    encoder = args.encoder(device)
    images = open_class_set(args.class_source(), args.test_split)
    if images.multi_label:
        raise UserError(f"{images.title} has several classes an image; clustering needs one class an image")
    k = args.clusters or len(images.class_names)
    if not 2 <= k <= len(images) or min(args.iterations, args.restarts) < 1:
        raise UserError(f"--clusters {k} must be from 2 to {len(images)}, the number of images, and --iterations "
                        f"{args.iterations} and --restarts {args.restarts} at least 1")  # fmt: skip
    side = open_image_side(args.towers(), device)
    if run.begin({"images": images.digest, "tower": [side.digest, side.head_digest]}):
        return dist.print0(f"{args.output} holds this evaluation already; --overwrite repeats it")

    features = side.project(image_features(images, side, encoder, args.image_crop, run.stop)).numpy()
    outcome = results(args, images, features, k) if dist.rank() == 0 else (None, None, None)
    run.finish(*outcome)


def results(args, images, features, k):
    """(rows of samples.jsonl, result, gallery), and a line printed."""
    names = images.class_names
    clusters = cluster(features, k, args.iterations, args.restarts, args.seed)
    found, matched = cluster_scores(clusters, images.labels, k, len(names), args.seed)
    rows = [
        {"id": name, "label": names[label], "cluster": int(own), "prediction": names[match] if match >= 0 else None,
         "correct": bool(match == label)}
        for name, label, own, match in zip(images.ids, images.labels.tolist(), clusters, matched.tolist())
    ]  # fmt: skip
    protocol = {"clusters": k, "classes": len(names), "iterations": args.iterations, "restarts": args.restarts,
                "features": "joint space, normalised", "metric": "AMI"}  # fmt: skip
    result = {"task": "clustering", "dataset": args.dataset, "split": args.test_split, "checkpoint": args.load, **found,
              "protocol": protocol}  # fmt: skip
    class_of = dict(zip(clusters.tolist(), matched.tolist()))
    order = sorted(range(k), key=lambda c: (class_of.get(c, -1) < 0, class_of.get(c, -1), c))  # along the diagonal
    columns = [f"cluster {c}" for c in order]
    table = confusion(images.labels, np.argsort(order)[clusters], names, columns, title="Classes and clusters")
    print(f"{printable(images.title)}: AMI {found['AMI']:.2f}, NMI {found['NMI']:.2f}, ARI {found['ARI']:.2f}, "
          f"matched accuracy {found['matched_accuracy']:.2f} of {len(images):,} images", flush=True)  # fmt: skip
    return rows, result, {"cards": [], "confusion": table}


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
