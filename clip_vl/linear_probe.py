"""Linear probe: logistic regression on the features of a frozen image tower.

    python -m clip_vl.linear_probe --dataset data/shapes_pairs --load snap/align/N/epoch_2.pt --output snap/linear/N
    python -m clip_vl.linear_probe --dataset torchvision:CIFAR10 --datasets_dir data/torchvision --image_model RN50 \
        --pretrained_image_model --C 2 --output snap/linear/cifar10                            no search
    bash scripts/linear_probe.bash 0 NAME 9590 1 --dataset elevater:dtd --load ...             on a GPU

L-BFGS to the optimum of scikit-learn's objective. C, the inverse of the penalty of the weights, is searched on the
validation split as CLIP does (arXiv:2103.00020, appendix A.3); the final classifier is fitted on training and
validation images. --compat_best_test takes the best of 11 values on the test split itself, as some published code does;
the score is too high, and is reported under a name of its own. Features are those of the tower, before any projection
head and not normalised; they are encoded once and shared with other programs. The same command resumes an interrupted
run.
"""

from dataclasses import dataclass

from clip_vl.flags.classes import ClassSetFlags, TrainSplitFlags
from clip_vl.flags.dual import ImageTowerFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.evaluation import EvaluationFlags
from clip_vl.flags.parser import flag, parse


@dataclass
class LinearProbeFlags(
    EvaluationFlags, ClassSetFlags, TrainSplitFlags, ImageTowerFlags, TextTowerFlags, SharedTowerFlags
):
    """Linear probe"""

    valid_split: str | None = flag(
        None, "Split on which C is chosen [val if there is one, else a fifth of each class of --train_split]."
    )
    C: float | None = flag(
        None, "Inverse of the penalty of the weights, as scikit-learn's C [searched on the validation split]."
    )
    max_iter: int = flag(1000, "Largest number of iterations of L-BFGS.")
    compat_best_test: bool = flag(
        False, "Choose C on the test split, as some published code does; the score is too high."
    )
    gallery: int = flag(24, "Images shown in the report.")


FLAGS = parse(LinearProbeFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import torch

from clip_vl.datasets.classes.sets import open_class_set, open_training, open_validation, training_rows
from clip_vl.encoding.classes import image_features
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError, printable
from clip_vl.engine.evaluation_run import EvaluationRun
from clip_vl.evaluation.class_scores import class_scores, headline_score, top_ties
from clip_vl.evaluation.linear import TEST_GRID, fit, probabilities, search_c
from clip_vl.models.dual.sides import open_image_side
from clip_vl.reports.classes import class_gallery, sample_rows
from clip_vl.reports.page import write_report


class Search:
    """Fits at several C on rank 0, each kept on disk as soon as it is done; every process gets the scores.

    fit_scores: C -> probabilities (N, classes);  score_of: probabilities -> the metric of the dataset
    in_parts:   as of `EvaluationRun`
    """

    def __init__(self, fit_scores, score_of, in_parts):
        self.fit_scores, self.score_of, self.in_parts, self.stage = fit_scores, score_of, in_parts, 0

    def __call__(self, values):
        """Scores of the fits at these C."""

        def compute(part):
            return {"score": self.score_of(self.fit_scores(values[part]))}

        self.stage += 1
        parts = self.in_parts(f"search{self.stage}", len(values), lambda part: rank0(lambda: compute(part)))
        return dist.gather([float(part["score"]) for part in parts])[0]


def fitted_scores(train, C, classes, max_iter, features):
    """Probabilities of `features` (N, D) under the regression on `train`, (features, labels): NumPy (N, classes)."""
    weight, bias = fit(*train, classes, C, max_iter)
    return probabilities(features, weight, bias).cpu().numpy()


def choose_c(search, C, on_test):
    """(C, how it was chosen, {C: score of the search}). search: values -> scores;  on_test: of the test split"""
    if on_test:
        scores = dict(zip(TEST_GRID, search(TEST_GRID)))
        return max(scores, key=lambda C: (scores[C], -C)), "test split (compat_best_test)", scores
    if C is not None:
        return C, "given", {}
    C, scores = search_c(search)
    return C, "validation split", scores


def main(args):
    device = dist.setup()
    args = recalled(args)
    check_search(args)
    run = EvaluationRun("linear_probe", args.run(), device, write_report)
    source, encoder = args.class_source(), args.encoder(device)
    test = open_class_set(source, args.test_split)
    train, valid = open_training(source, args.train_split, test), None
    searches = args.C is None and not args.compat_best_test
    if searches:
        valid = open_validation(source, args.valid_split, {args.test_split: test, args.train_split: train})
    side = open_image_side(args.towers(), device)
    digests = {"train": train.digest, "valid": valid and valid.digest, "test": test.digest, "tower": side.digest}
    if run.begin(digests):
        return dist.print0(f"{args.output} holds this evaluation already; --overwrite repeats it")

    def encoded(images):  # (features (N, D), labels (N,)) on the device
        features = image_features(images, side, encoder, args.image_crop, run.stop)
        return features.to(device), torch.from_numpy(images.labels).to(device)

    fit_on, tested = encoded(train), encoded(test)
    every, chosen_on, title = fit_on, tested, valid and valid.title
    if valid is not None:
        chosen_on = encoded(valid)
        every = tuple(map(torch.cat, zip(fit_on, chosen_on)))
    elif searches:
        title = f"a fifth of each class of {train.title}"
        fit_on, chosen_on = (rows_of(every, rows) for rows in training_rows(train, args.seed))

    classes = len(test.class_names)
    search = Search(
        lambda C: fitted_scores(fit_on, C, classes, args.max_iter, chosen_on[0]),
        lambda scores: headline_score(scores, chosen_on[1].cpu().numpy(), test.metric), run.in_parts,
    )  # fmt: skip
    C, how, searched = choose_c(search, args.C, args.compat_best_test)
    final = run.in_parts("final", 1, lambda _: rank0(
        lambda: {"scores": fitted_scores(every, C, classes, args.max_iter, tested[0])}))  # fmt: skip
    if not final:
        return run.finish(None, None, None)
    scores = final[0]["scores"]
    found = class_scores(scores, test.labels, test.metric, args.seed)
    if args.compat_best_test:  # never to be taken for a score of C chosen without the test split
        found = {f"best_test_{name}": value for name, value in found.items()}
    protocol = {"metric": test.metric, "C": C, "chosen_by": how, "validation": title, "train": train.title,
                "train_images": len(every[1]), "classes": classes, "max_iter": args.max_iter,
                "search": {f"{value:.4g}": round(score, 4) for value, score in searched.items()},
                "features": "tower, as they are", "ties": top_ties(scores)}  # fmt: skip
    result = {"task": "linear_probe", "dataset": args.dataset, "split": args.test_split, "checkpoint": args.load,
              **found, "protocol": protocol}  # fmt: skip
    run.finish(sample_rows(test, scores), result, class_gallery(test, scores, args.gallery, args.seed))
    name = next(iter(found))
    print(f"{printable(test.title)}: {name} {found[name]:.2f} of {len(test):,} images", flush=True)


def check_search(args):
    if args.compat_best_test and args.C is not None:
        raise UserError("--C gives C and --compat_best_test searches it: pass one of them")
    if args.C is not None and args.C <= 0:
        raise UserError(f"--C {args.C} must be above 0")
    if args.max_iter < 1:
        raise UserError(f"--max_iter {args.max_iter} must be at least 1")


def rows_of(pair, rows):
    rows = torch.from_numpy(rows).to(pair[0].device)
    return pair[0][rows], pair[1][rows]


def rank0(compute):
    return compute() if dist.rank() == 0 else None


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
