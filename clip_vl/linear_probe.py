"""Linear probe: logistic regression on an image tower's features, which stay as they are.

    python -m clip_vl.linear_probe --dataset data/shapes_pairs --load snap/align/N/epoch_2.pt --output snap/linear/N
    python -m clip_vl.linear_probe --dataset torchvision:CIFAR10 --datasets_dir data/torchvision --image_model RN50 \
        --pretrained_image_model --C 2 --output snap/linear/cifar10                            no search
    bash scripts/linear_probe.bash 0 NAME 9590 1 --dataset elevater:dtd --load ...             on a GPU

L-BFGS to the optimum of scikit-learn's objective. C, how little weights are penalised, is searched on the validation
split as CLIP does (arXiv:2103.00020, appendix A.3); what is then judged was learnt from training and validation images.
--compat_best_test takes the best of 11 values on the test split itself, as some published code does: a score that is
too good, reported under a name of its own. Features are those of the tower, before any projection head and not
normalised; they are encoded once and shared with the other programs. The same command goes on after an interruption.
"""

from dataclasses import dataclass

from clip_vl.flags.classes import ClassSetFlags, TrainSplitFlags
from clip_vl.flags.dual import ImageTowerFlags, EvaluationFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.parser import flag, parse


@dataclass
class LinearProbeFlags(
    EvaluationFlags, ClassSetFlags, TrainSplitFlags, ImageTowerFlags, TextTowerFlags, SharedTowerFlags
):
    """Linear probe"""

    C: float | None = flag(None, "Inverse of the penalty, as scikit-learn's C [searched on the validation split].")
    max_iter: int = flag(1000, "Iterations of L-BFGS at most.")
    compat_best_test: bool = flag(False, "Choose C on the test split, as published code does; the score is too good.")
    gallery: int = flag(24, "Images shown in the report.")


FLAGS = parse(LinearProbeFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import torch

from clip_vl.datasets.classes.sets import open_class_set, open_training, training_rows
from clip_vl.encoding.classes import image_features
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError, printable
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.evaluation.class_scores import class_scores, headline_score, top_ties
from clip_vl.evaluation.linear import TEST_GRID, fit, probabilities, search_c
from clip_vl.models.dual.sides import open_image_side
from clip_vl.reports.classes import class_gallery, sample_rows


class Search:
    """Fits at several C on rank 0, each kept on disk as soon as it is done; every process gets the scores.

    learn, judge: (features, labels) on the device
    """

    def __init__(self, run, args, test, learn, judge):
        self.run, self.args, self.test, self.learn, self.judge = run, args, test, learn, judge
        self.stage = 0

    def __call__(self, values):
        """Scores, by the data set's metric, of the fits at these C."""

        def compute(part):
            scores = fitted_scores(self.args, self.test, values[part], self.learn, self.judge[0])
            return {"score": headline_score(scores, self.judge[1].cpu().numpy(), self.test.metric)}

        self.stage += 1
        parts = self.run.in_parts(f"search{self.stage}", len(values), lambda part: rank0(lambda: compute(part)))
        return dist.gather([float(part["score"]) for part in parts])[0]


def fitted_scores(args, test, C, learn, features):
    """Probabilities of `features` (N, D) under the regression on `learn`: NumPy (N, classes)."""
    weight, bias = fit(*learn, len(test.class_names), C, args.max_iter)
    return probabilities(features, weight, bias).cpu().numpy()


def choose_c(args, run, test, learn, valid, judge):
    """(C, how it was chosen, {C: score of the search}).

    learn, valid, judge: (features, labels) of the images to learn from, to choose by (or None), and of the test split
    """
    if args.compat_best_test:
        scores = dict(zip(TEST_GRID, Search(run, args, test, learn, judge)(TEST_GRID)))
        return max(scores, key=lambda C: (scores[C], -C)), "test split (compat_best_test)", scores
    if args.C is not None:
        return args.C, "given", {}
    C, scores = search_c(Search(run, args, test, learn, valid))
    return C, "validation split", scores


def main(args):
    device = dist.setup()
    args = recalled(args)
    check_search(args)
    run = EvaluationRun(args, "linear_probe", device)
    test = open_class_set(args, args.test_split)
    train, valid = open_training(args, test)
    valid = valid if args.C is None and not args.compat_best_test else None  # else nothing is chosen by it
    side = open_image_side(args.towers(), device)
    digests = {"train": train.digest, "valid": valid and valid.digest, "test": test.digest, "tower": side.digest}
    if run.begin(digests):
        return dist.print0(f"{args.output} is finished already")

    learn, judge, chosen_by = (encoded(images, side, args, device, run) for images in (train, test, valid))
    every, title = learn, valid and valid.title
    if valid is not None:
        every = tuple(map(torch.cat, zip(learn, chosen_by)))
    elif args.C is None and not args.compat_best_test:
        title = f"a fifth of each class of {train.title}"
        learn, chosen_by = (rows_of(every, rows) for rows in training_rows(train, args.seed))
    C, how, searched = choose_c(args, run, test, learn, chosen_by, judge)
    final = run.in_parts("final", 1, lambda _: rank0(lambda: {"scores": fitted_scores(args, test, C, every, judge[0])}))
    protocol = {"metric": test.metric, "C": C, "chosen_by": how, "validation": title, "train": train.title,
                "train_images": len(every[1]), "classes": len(test.class_names), "max_iter": args.max_iter,
                "search": {f"{value:.4g}": round(score, 4) for value, score in searched.items()},
                "features": "tower, as they are"}  # fmt: skip
    run.finish(*(results(args, test, final[0]["scores"], protocol) if final else (None, None, None)))


def check_search(args):
    if args.compat_best_test and args.C is not None:
        raise UserError("--C gives C and --compat_best_test searches it: pass one of them")
    if args.C is not None and args.C <= 0:
        raise UserError(f"--C {args.C} must be above 0")
    if args.max_iter < 1:
        raise UserError(f"--max_iter {args.max_iter} must be at least 1")


def encoded(images, side, args, device, run):
    """(features (N, D), labels (N,)) on the device; None without images."""
    if images is None:
        return None
    return image_features(images, side, args, device, run.stop).to(device), torch.from_numpy(images.labels).to(device)


def rows_of(pair, rows):
    rows = torch.from_numpy(rows).to(pair[0].device)
    return pair[0][rows], pair[1][rows]


def rank0(compute):
    return compute() if dist.rank() == 0 else None


def results(args, test, scores, protocol):
    """(rows of samples.jsonl, result, gallery), and a line printed."""
    protocol |= {"ties": top_ties(scores)}
    found = class_scores(scores, test.labels, test.metric, args.seed)
    if args.compat_best_test:  # never to be taken for a score of C chosen without the test split
        found = {f"best_test_{name}": value for name, value in found.items()}
    result = {"task": "linear_probe", "dataset": args.dataset, "split": args.test_split, "checkpoint": args.load,
              **found, "protocol": protocol}  # fmt: skip
    name = next(iter(found))
    print(f"{printable(test.title)}: {name} {found[name]:.2f} of {len(test):,} images", flush=True)
    return sample_rows(test, scores), result, class_gallery(test, scores, args.gallery, args.seed)


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
