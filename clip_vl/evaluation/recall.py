"""Retrieval between images and texts: exact ranks in chunks, recall at K, ties stated.

A query's rank is 1 + how many others score above its best-scoring match; with ties the pessimistic rank also counts the
others that score the same, and whatever is not a number. The match's score and its competitors' come out of the same
product: computed apart they differ in the last bits, and near-duplicates would tie or not by accident.
"""

import numpy as np
import torch

from clip_vl.evaluation.bootstrap import clustered_interval
from clip_vl.evaluation.features import collect

CHUNK = 2**22  # scores computed at a time: 16 MiB


def evaluate_retrieval(model, held_out, device, precision, watched=iter):
    """Recall of held-out pairs, computed by all processes -> (metrics, image features, text features).

    model:    has encode_image and encode_text;  precision: a context to encode in
    held_out: has image_batches(device) and text_batches(device), of (places, batch), and image_of_text
    watched:  passes the batches on, or stops
    """
    model.eval()
    images = collect(lambda b: model.encode_image(b["images"]), watched(held_out.image_batches(device)), precision)
    texts = collect(lambda b: model.encode_text(b["tokens"]), watched(held_out.text_batches(device)), precision)
    return retrieval_metrics(images, texts, held_out.image_of_text), images, texts


def retrieval_metrics(image_features, text_features, image_of_text, ks=(1, 5, 10)):
    """Recall at K both ways, in percent, with mean and median rank and how many ranks hang on a tie.

    image_features: (N, D), text_features: (M, D), L2-normalised, float32 tensors on one device
    image_of_text:  (M,) row of the image that each text describes; every image has a text
    returns: dict of text_to_image_recall@1 ..., image_to_text_recall@1 ..., each with its 95 % interval (images are
             resampled, with all of their texts) as *_low and *_high and the number of queries as *_n; mean_recall,
             *_mean_rank, *_median_rank, *_ties, and where there are ties *_optimistic recalls
    """
    image_of_text = np.asarray(image_of_text)
    ranks = {
        "text_to_image": (*text_to_image_ranks(image_features, text_features, image_of_text), image_of_text),
        "image_to_text": (
            *image_to_text_ranks(image_features, text_features, image_of_text),
            np.arange(len(image_features)),
        ),
    }
    metrics, more = {}, {}
    for way, (best, worst, clusters) in ranks.items():
        ties = int(np.sum(best != worst))
        for k in ks:
            hits = 100.0 * (worst <= k)
            name = f"{way}_recall@{k}"
            metrics[name] = float(hits.mean())
            metrics[f"{name}_low"], metrics[f"{name}_high"] = clustered_interval(hits, clusters)
            metrics[f"{name}_n"] = len(hits)
            if ties:
                more[f"{name}_optimistic"] = 100 * float(np.mean(best <= k))
        more |= {f"{way}_mean_rank": float(worst.mean()), f"{way}_median_rank": float(np.median(worst))}
        more[f"{way}_ties"] = ties
    recalls = [metrics[f"{way}_recall@{k}"] for way in ranks for k in ks]
    return metrics | {"mean_recall": float(np.mean(recalls))} | more


def text_to_image_ranks(image_features, text_features, image_of_text):
    """(optimistic, pessimistic) rank of each text's image among all images, int64 (M,) each."""
    targets = torch.as_tensor(image_of_text, device=text_features.device)
    step = max(1, CHUNK // len(image_features))
    ranks = []
    for start in range(0, len(text_features), step):
        scores = text_features[start : start + step] @ image_features.T  # (m, N)
        gold = scores.gather(1, targets[start : start + step, None])
        ranks.append(torch.stack([1 + count(scores > gold), count(~(scores < gold))]))
    return _both(ranks)


def image_to_text_ranks(image_features, text_features, image_of_text):
    """(optimistic, pessimistic) rank of each image's best text among the texts of other images, int64 (N,) each."""
    image_of_text = torch.as_tensor(image_of_text, device=text_features.device)
    step = max(1, CHUNK // len(text_features))
    ranks = []
    for start in range(0, len(image_features), step):
        scores = image_features[start : start + step] @ text_features.T  # (n, M)
        rows = torch.arange(start, start + len(scores), device=scores.device)
        own = image_of_text[None] == rows[:, None]  # (n, M)
        gold = scores.masked_fill(~own, -torch.inf).amax(1, keepdim=True)
        others = scores.masked_fill(own, -torch.inf)
        ranks.append(torch.stack([1 + count(others > gold), 1 + count(~(others < gold))]))
    return _both(ranks)


def count(flags):
    """How many of each row are true, (n, N) bool -> (n,). A sum over bool would widen every element to int64 first."""
    return torch.from_numpy(np.count_nonzero(flags.cpu().numpy(), axis=1))


def _both(ranks):
    return tuple(torch.cat(ranks, dim=1).numpy())
