"""Zero-shot classification (CLIP, arXiv:2103.00020, section 3.1): a weight vector for each class from its prompts."""

import torch
from torch.nn import functional as F

SCALE = 100.0  # of the cosines: CLIP's trained temperature, and what ELEVATER uses for every model


def class_weights(features, normalise_first=True):
    """Features of the prompts (C, T, D) -> class weights (C, D), L2-normalised: the mean over the T prompts.

    normalise_first: as OpenAI's: every prompt counts alike. Else longer vectors count more, as in some published code
    """
    features = features.float()
    if normalise_first:
        features = F.normalize(features, dim=2)
    return F.normalize(features.mean(1), dim=1)


def class_probabilities(image_features, weights, scale=SCALE):
    """L2-normalised (N, D) and (C, D) -> softmax of the scaled cosines, (N, C)."""
    return torch.softmax(scale * image_features @ weights.T, dim=1)
