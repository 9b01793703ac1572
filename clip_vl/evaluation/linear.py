"""Logistic regression on features, with the objective of scikit-learn's: C * sum of losses + |W|^2 / 2, no penalty on
the bias. And CLIP's search for C on a validation split (arXiv:2103.00020, appendix A.3)."""

import torch
from torch.nn import functional as F

GRID = [10 ** (-6 + step / 8) for step in range(97)]  # 1e-6 ... 1e6
COARSE = range(0, 97, 16)  # first every second decade, then half as far from the best, down to 8 steps a decade
REFINEMENTS = (8, 4, 2, 1)
TEST_GRID = [10 ** (-2 + step / 2) for step in range(11)]  # 0.01 ... 1000: published searches on the test split


def fit(features, labels, num_classes, C, max_iter=1000, tolerance=1e-6):
    """(weight (num_classes, D), bias (num_classes,)) by L-BFGS. features: float32 (N, D);  labels: int64 (N,).

    The features are centred and scaled by one number, which changes no optimum (the bias is free, the penalty is
    rescaled) and saves iterations. tolerance: the largest entry of the gradient of the mean loss at which to stop
    """
    mean = features.mean(0)
    centred = features - mean
    scale = float(centred.square().mean().sqrt()) or 1.0
    centred /= scale
    weight = torch.zeros(num_classes, features.shape[1], device=features.device, requires_grad=True)
    bias = torch.zeros(num_classes, device=features.device, requires_grad=True)
    # With two classes scikit-learn penalises the difference of their weights, w: |w|^2 / 2 = |w1|^2 + |w0|^2.
    decay = (2 if num_classes == 2 else 1) / (2 * C * len(labels) * scale**2)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=max_iter, history_size=10, line_search_fn="strong_wolfe",
                                  tolerance_grad=tolerance, tolerance_change=1e-9)  # fmt: skip

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(centred @ weight.T + bias, labels) + decay * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight = weight.detach() / scale
    return weight, bias.detach() - weight @ mean


def probabilities(features, weight, bias):
    return torch.softmax(features @ weight.T + bias, dim=1)


def search_c(evaluate):
    """(C, {C: score}) of the best score on the grid; of equal ones the smallest C, which is the strongest penalty.

    evaluate: list of C, of one stage of the search -> their scores
    """
    scores = dict(zip(COARSE, evaluate([GRID[place] for place in COARSE])))
    for step in REFINEMENTS:
        best = _best(scores)
        near = [place for place in (best - step, best + step) if 0 <= place < len(GRID) and place not in scores]
        scores |= dict(zip(near, evaluate([GRID[place] for place in near]))) if near else {}
    return GRID[_best(scores)], {GRID[place]: scores[place] for place in sorted(scores)}


def _best(scores):
    return min(scores, key=lambda place: (-scores[place], place))
