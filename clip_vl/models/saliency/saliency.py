"""Saliency: which cells of an image raise a score of it, by the gradient of the score.

heat, method = dual_saliency(model, images, "a red circle")             # cosine of image and text
heat, method = fused_saliency(scorer, images, boxes, tokens)            # log-odds that they match
heat, method = saliency_of(tower, score)                                # score: () -> scalar that calls the tower once

The method depends on the structure of the tower. One that ends in a feature map, as a ResNet before its pooling, gets
Grad-CAM (arXiv:1610.02391, equations 1 and 2). One that ends in layers over patch tokens gets attention x gradient
(arXiv:2103.15679, equations 5 and 6), or gradient x activation where its attention probabilities cannot be read.
"""

from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from clip_vl.models.saliency.layers import AttentionProbabilities, hooked, observe, places_of

GRAD_CAM, ATTENTION, ACTIVATION = "Grad-CAM", "attention × gradient", "gradient × activation"
NO_CELLS = "it has neither a feature map nor patch tokens"


class Saliency(NamedTuple):
    """heat:   NumPy float32 (h, w) in 0..1, row 0 at the top, 1 for the cell with most saliency, or all 0 where none
            raises the score; None where the tower allows no saliency
    method: its name, or without heat why there is none
    """

    heat: np.ndarray | None
    method: str


def dual_saliency(model, images, text):
    """`Saliency` of the cosine of an image and a text. images: (1, 3, S, S) as `DualEncoder` takes them; text: str"""
    with in_evaluation_mode(model):
        with torch.no_grad():
            text_features = model.encode_text([text])
        return saliency_of(model.image_tower, lambda: (model.encode_image(images) * text_features).sum())


def fused_saliency(scorer, images, boxes, tokens):
    """`Saliency` of the log-odds of `FusedScorer`, over the whole canvas.

    images: uint8 (1, 3, H, W);  boxes: (1, 4);  tokens: {input_ids, attention_mask} of one text, (1, L) each
    """
    with in_evaluation_mode(scorer):
        return saliency_of(scorer.tower, lambda: scorer.log_odds(scorer.tower(images), boxes, **tokens).sum())


def saliency_of(tower, score):
    """`Saliency` of what `score()` gives, which calls `tower` once, for one image, in evaluation.

    Parameters need no gradient and get none: what the tower's cells are computed from is cut off before them.
    """
    try:
        image, ended = observe(tower, score)
        layers, before, after = places_of(tower, image, ended)
        if after:
            heat, method = _grad_cam(after[-1], score), GRAD_CAM
        elif layers and before:
            heat, method = _over_tokens([layer.module for layer in layers], before[-1].cells, score)
        else:
            return Saliency(None, NO_CELLS)
    except Exception as error:  # a library's tower may do anything; hours of scores are not lost for a saliency map
        return Saliency(None, f"it failed with {type(error).__name__}: {str(error).partition(chr(10))[0][:200]}")
    if heat is None or not heat.isfinite().all():
        return Saliency(None, NO_CELLS)
    return Saliency((heat / heat.max().clamp(min=torch.finfo(heat.dtype).tiny)).float().cpu().numpy(), method)


@contextmanager
def in_evaluation_mode(model):
    """The model in evaluation mode; afterwards every module has the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# ---- heat, not yet between 0 and 1


def _leaf(tensor):
    """What takes the place of a tensor for gradients to end at; a copy, since in-place layers may follow."""
    return tensor.detach().requires_grad_().clone()


def _grad_cam(place, score):
    """ReLU of the channels' sum, each weighted with the mean of its gradient: (h, w)."""
    kept = []

    def keep(_, __, output):
        kept[:] = [_leaf(output)]
        return kept[0]

    with torch.enable_grad(), hooked(place.module.register_forward_hook(keep)):
        (gradient,) = torch.autograd.grad(score(), kept)
    cells = (1, 2) if place.channels_last else (2, 3)
    weighted = gradient.mean(cells, keepdim=True) * kept[0].detach()
    return weighted.sum(3 if place.channels_last else 1).relu()[0]


def _over_tokens(blocks, cells, score):
    """(heat (h, w) of a tower that ends in layers over tokens, those of the patches last; method)."""
    first, last, end, seen_in_blocks, attention = [], [], [], [], AttentionProbabilities()

    def enter(_, args):
        attention.seen.clear()
        first[:] = [_leaf(args[0])]
        return first[0], *args[1:]

    def leave(_, __, output):
        end[:], seen_in_blocks[:] = [output], attention.seen

    hooks = [
        blocks[0].register_forward_pre_hook(enter),
        blocks[-1].register_forward_pre_hook(lambda _, args: last.append(args[0])),
        blocks[-1].register_forward_hook(leave),
    ]
    with torch.enable_grad(), attention, hooked(*hooks):
        value = score()
    L = first[0].shape[1]
    visible = len(seen_in_blocks) == len(blocks) and all(a.shape[0] == 1 and a.shape[3] == L for a in seen_in_blocks)
    if visible:
        heat, method = _attention_times_gradient(value, seen_in_blocks, end[0]), ATTENTION
    else:
        heat, method = _gradient_times_activation(value, last[0]), ACTIVATION
    before = len(heat) - cells[0] * cells[1]  # class token, registers
    return (None if before < 0 else heat[before:].view(*cells)), method


def _attention_times_gradient(value, probabilities, end):
    """(L,) relevance of the tokens before the first layer to what is read after the last one.

    probabilities: (1, heads, q, L) of each layer, of the first q tokens;  end: (1, q, D), the last layer's output

    The tokens that are read (the class token, all tokens of a mean, those that another encoder attends to) are known by
    the length of the gradient there. A token's own content, which the residual carries past all attention, is left out:
    a mean would spread it evenly over the image.
    """
    *gradients, at_end = torch.autograd.grad(value, [*probabilities, end], allow_unused=True)
    L = probabilities[0].shape[3]
    own = torch.eye(L, device=end.device)
    relevance = own
    for weights, gradient in zip(probabilities, gradients):
        if gradient is None:  # nothing that is read depends on it
            continue
        flow = (gradient * weights.detach()).clamp(min=0).mean(1)[0]  # (q, L), equation 5
        q = len(flow)
        relevance = torch.cat([relevance[:q] + flow @ relevance, relevance[q:]])  # equation 6
    reading = at_end[0].norm(dim=1)  # (q,)
    return reading @ (relevance - own)[: len(reading)]


def _gradient_times_activation(value, tokens):
    """(L,) length of the product of the last layer's input tokens with their gradients.

    Not its sum, which is zero where a LayerNorm comes next: that does not see a token's length.
    """
    (gradient,) = torch.autograd.grad(value, tokens)
    return (gradient * tokens.detach()).norm(dim=2)[0]
