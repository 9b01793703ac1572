"""The retrieval score of S-SMKE (as BEiT-3's): six recalls, their mean, and the average median rank on COCO."""

import numpy as np
import torch

from clip_vl.evaluation.recall import feature_ranks

FOLDS, CAPTIONS = 5, 5


def published_scores(image_features, text_features, image_ids, amr=False):
    """Recalls in percent under their published names, both ways, from one row per caption.

    image_features, text_features: (M, D), L2-normalised: the image and the caption of each row
    image_ids: (M,); the first row of an id gives its image's features
    amr:       also the average median ranks over five parts of the images
    returns:   tr_r1, tr_r5, tr_r10 (image to text), ir_r1, ir_r5, ir_r10 (text to image), average_score and, where
               asked, tr_amr, ir_amr
    """
    _, first, image_of_text = np.unique(np.asarray(image_ids), return_index=True, return_inverse=True)
    images = image_features[torch.from_numpy(first)]
    ranks = feature_ranks(images, text_features, image_of_text)
    scores = {f"tr_r{k}": 100 * float(np.mean(ranks.image_to_text[1] <= k)) for k in (1, 5, 10)}
    scores |= {f"ir_r{k}": 100 * float(np.mean(ranks.text_to_image[1] <= k)) for k in (1, 5, 10)}
    scores["average_score"] = float(np.mean(list(scores.values())))
    return scores | (average_median_ranks(images, text_features, image_of_text) if amr else {})


def average_median_ranks(images, texts, image_of_text):
    """Median rank of the match, both ways, averaged over folds of the images and over each image's first five captions.

    images: (N, D) in ascending order of their ids;  texts: (M, D);  image_of_text: (M,) -> {"tr_amr", "ir_amr"}
    """
    captions = [np.flatnonzero(image_of_text == i)[:CAPTIONS] for i in range(len(images))]
    if min(map(len, captions)) < CAPTIONS:
        raise ValueError(f"the average median rank needs {CAPTIONS} captions of every image")
    captions, medians = np.stack(captions), []  # (N, 5)
    for fold in np.array_split(np.arange(len(images)), FOLDS):
        for i in range(CAPTIONS):
            own = texts[torch.from_numpy(captions[fold, i])]
            ranks = feature_ranks(images[torch.from_numpy(fold)], own, np.arange(len(fold)))
            medians.append([np.median(ranks.image_to_text[1]), np.median(ranks.text_to_image[1])])
    return dict(zip(("tr_amr", "ir_amr"), np.mean(medians, 0).tolist()))
