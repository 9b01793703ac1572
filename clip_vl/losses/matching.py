"""Losses of a matching head over a batch of G images and G texts, of which text i describes image i.

A head that sees image and text together judges a pair at a time, so some pairs of a batch have scores, not all.
"""

import torch
from torch.nn import functional as F

from clip_vl.losses.answering import single_answer_loss

NEGATIVES_WEIGHT = 2 / 3  # ALBEF draws for each pair one text and one image that do not belong to it


def pair_matrix(log_odds, images, texts, shape):
    """(rows, columns) float32, -inf where a pair was not judged.

    log_odds: (P,);  images, texts: (P,) the row and the column of each
    """
    matrix = log_odds.new_full(shape, -torch.inf, dtype=torch.float32)
    return matrix.index_put((images, texts), log_odds.float())


def matching_losses(log_odds, usable):
    """{"loss_nce", "loss_itm", "accuracy"} of the judged pairs, scalars; the last without gradient, in percent.

    loss_nce: InfoNCE (CLIP, arXiv:2103.00020, figure 3) over the log-odds: the cross entropy of the own text among the
              judged texts of an image, and of the own image among the judged images of a text, the mean of both
    loss_itm: binary cross entropy of each judged pair; as in ALBEF (arXiv:2107.07651, equation 4) all the others weigh
              twice as much as the own pairs, however many there are
    accuracy: images whose own text scores highest among their judged ones

    log_odds: (G, G) of image i and text j, -inf where a pair was not judged; the diagonal was
    usable:   bool (G,), images that could be read; the others' pairs count for nothing
    """
    G = len(usable)
    own, places = torch.eye(G, dtype=torch.bool, device=usable.device), torch.arange(G, device=usable.device)
    log_odds = log_odds.masked_fill(~usable[:, None] & ~own, -torch.inf)  # no candidates for the texts of others
    nce = (single_answer_loss(log_odds, places, usable) + single_answer_loss(log_odds.T, places, usable)) / 2
    matched = _mean(F.softplus(-log_odds.diagonal()), usable)
    others = (log_odds > -torch.inf) & ~own
    unmatched = _mean(F.softplus(log_odds.masked_fill(~others, 0.0)), others)
    itm = (1 - NEGATIVES_WEIGHT) * matched + NEGATIVES_WEIGHT * unmatched
    right = (log_odds.detach().argmax(1) == places).float()
    return {"loss_nce": nce, "loss_itm": itm, "accuracy": 100 * _mean(right, usable)}


def _mean(values, counts):
    """Mean of the values that count; 0 where none does."""
    return (values * counts).sum() / counts.sum().clamp(min=1)
