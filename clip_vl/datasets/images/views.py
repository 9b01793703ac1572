"""Views for distillation: colour jitter on a random crop, and an independent view of the same image for the teacher."""

import torch

JITTERS = ("brightness", "contrast", "saturation")


class Jittered:
    """A crop followed by changes of brightness, contrast and saturation by up to `strength`, in random order."""

    def __init__(self, crop, strength):
        self.crop, self.strength, self.resolution = crop, strength, crop.resolution

    def __call__(self, data, rng, name="image"):
        from torchvision.transforms.v2 import functional

        view = self.crop(data, rng, name)
        for kind in rng.permutation(JITTERS):
            view = getattr(functional, f"adjust_{kind}")(view, rng.uniform(1 - self.strength, 1 + self.strength))
        return view


class TwoViews:
    """Two independent views of an image, one after the other along the channels: uint8 (6, S, S)."""

    def __init__(self, first, second):
        self.first, self.second, self.resolution = first, second, first.resolution

    def __call__(self, data, rng, name="image"):
        return torch.cat([self.first(data, rng, name), self.second(data, rng, name)])
