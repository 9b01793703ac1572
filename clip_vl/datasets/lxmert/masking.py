"""Masked language modelling: which tokens are hidden, and what stands in their place (BERT, arXiv:1810.04805)."""

import torch

HIDDEN, RANDOM = 0.8, 0.1  # shares of the chosen tokens that become [MASK] or any token; the rest stays as it is


def mask_tokens(input_ids, attention_mask, uniform, rate, mask_id, vocab_size):
    """Choose each word piece with probability `rate`, apart from the others, and hide what was chosen.

    input_ids, attention_mask: (B, L) integers, `[CLS] ... [SEP]` then padding; 1 keep, 0 padding
    uniform: (3, B, L) floats in [0, 1): decides which tokens are chosen, how each is hidden, and the random token
    returns: masked ids (B, L), and targets (B, L) with the true token where one was chosen and -1 elsewhere
    [CLS], [SEP] and padding are never chosen. Stays on the device of its arguments, without waiting for it.
    """
    word = torch.zeros_like(input_ids, dtype=torch.bool)
    word[:, 1:-1] = attention_mask[:, 2:] == 1  # a word piece is neither first nor last: something is kept behind it
    chosen = word & (uniform[0] < rate)
    hidden = chosen & (uniform[1] < HIDDEN)
    replaced = chosen & (uniform[1] >= HIDDEN) & (uniform[1] < HIDDEN + RANDOM)
    random_ids = (uniform[2] * vocab_size).long()
    masked_ids = torch.where(hidden, mask_id, torch.where(replaced, random_ids, input_ids))
    return masked_ids, torch.where(chosen, input_ids, -1)


def mask_regions(features, visible, uniform, rate):
    """Choose each region with probability `rate`; 80 % of these become zeros, 10 % another region, 10 % stay (LXMERT).

    features: (B, K, F);  visible: bool (B, K), False for padding, which is never chosen
    uniform:  (3, B, K) floats in [0, 1): decides which regions are chosen, how each is hidden, and by which other one
    returns:  masked features, and bool (B, K), which were chosen
    """
    chosen = visible & (uniform[0] < rate)
    zero = chosen & (uniform[1] < HIDDEN)
    replaced = chosen & (uniform[1] >= HIDDEN) & (uniform[1] < HIDDEN + RANDOM)
    flat = features.flatten(0, 1)
    regions = visible.flatten().nonzero().squeeze(1)  # of the whole batch
    others = flat[regions[(uniform[2] * len(regions)).long()]] if len(regions) else features
    masked = torch.where(replaced[..., None], others, features)
    return masked.masked_fill(zero[..., None], 0), chosen
