"""The layers of an image tower whose outputs are cells of the image, and the attention probabilities inside them."""

from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from clip_vl.models.attention import attention_probabilities


class Place(NamedTuple):
    time: int  # in the order in which modules end
    module: nn.Module
    shape: tuple

    @property
    def channels_last(self):
        """Of a map of square cells: Swin's (1, h, w, C) and not (1, C, h, w)."""
        return self.shape[1] == self.shape[2] != self.shape[3]

    @property
    def cells(self):
        return self.shape[1:3] if self.channels_last else self.shape[2:]

    def is_map(self, image, finest=None):
        """Whether these can be the cells of an `image` (H, W), several of its shape to within a cell, and no more of
        them than `finest` has: queries, keys and probabilities of attention, (1, heads, L, d or L), have four axes too.
        """
        if len(self.shape) != 4 or self.shape[0] != 1 or isinstance(self.module, nn.Dropout):
            return False
        (h, w), (H, W) = self.cells, image
        return h * w > 1 and abs(h * W - w * H) < max(H, W) and (finest is None or h <= finest.cells[0])


@contextmanager
def hooked(*handles):
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class AttentionProbabilities(TorchFunctionMode):
    """Inside, attention is the plain product, and `seen` has the probabilities (B, heads, L, M) of every call.

    PyTorch hands each call of `scaled_dot_product_attention` and of `nn.MultiheadAttention` to this mode, whose fused
    kernels keep no probabilities. Calls that are causal, masked by truth values or scaled otherwise stay as they are
    and leave nothing.
    """

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if function is F.multi_head_attention_forward and not kwargs.get("is_causal"):
            output, weights = function(*args, **kwargs | {"need_weights": True, "average_attn_weights": False})
            self.seen.append(weights)
            return output, weights.mean(1) if kwargs.get("need_weights", True) else None
        return function(*args, **kwargs)

    def _attention(self, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, **more):
        if is_causal or scale is not None or more or (attn_mask is not None and attn_mask.dtype == torch.bool):
            fused = F.scaled_dot_product_attention
            return fused(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, **more)
        probabilities = attention_probabilities(query, key, attn_mask)
        self.seen.append(probabilities)
        return F.dropout(probabilities, dropout_p, training=dropout_p > 0) @ value


def observe(tower, score):
    """(height and width of the image, {module: `Place`} of the modules that give a tensor, by their last call)."""
    ended, clock, image = {}, iter(range(2**31)), []

    def note(module, inputs, output):
        if module is tower:
            image[:] = inputs[0].shape[-2:]
        if isinstance(output, torch.Tensor):
            ended[module] = Place(next(clock), module, tuple(output.shape))

    with torch.no_grad(), hooked(*(module.register_forward_hook(note) for module in tower.modules())):
        score()
    return image, ended


def places_of(tower, image, ended):
    """(the last list of layers over tokens or [], feature maps before it, those after it), `Place`s in order of time.

    Without layers all maps come after; with them, the last one before is that of the patches.
    """
    lists = {}
    for name, module in tower.named_modules():
        if isinstance(module, nn.ModuleList | nn.Sequential) and not any(name.startswith(f"{n}.") for n in lists):
            places = [ended.get(child) for child in module]
            if places and all(place and len(place.shape) == 3 for place in places):
                lists[name] = sorted(places)
    every = {place.module for places in lists.values() for place in places}
    # Around all layers: a transformer that gives its tokens as a grid. Inside: queries and keys, (1, heads, L, d).
    around = {module for module in ended if every and every <= set(module.modules())}
    inside = {module for layer in every for module in layer.modules()}
    maps = sorted(ended[module] for module in ended.keys() - around - inside if ended[module].is_map(image))
    if not lists:
        return [], [], maps
    layers = max(lists.values())
    before = [place for place in maps if place.time < layers[0].time]
    after = [place for place in maps if place.time > layers[-1].time and before and place.is_map(image, before[-1])]
    return layers, before, after
