"""The preprocessing of a tower's images, kept on the tower so that the statistics travel with it."""

from dataclasses import dataclass

import torch
from torch.func import functional_call

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.statistics import CLIP_MEAN, CLIP_STD

OPENCLIP_CROPS = {"shortest": "short_side", "squash": "squash", "longest": "pad"}


@dataclass(frozen=True)
class Pixels:
    """Side of the square images, statistics of 0..1 pixels, and how an image is fitted into the square for evaluation.

    crop: "short_side" resizes the short side to `short_side` pixels (0: the resolution) and crops the centre;
          "squash" resizes to the square; "pad" resizes the long side and pads
    """

    resolution: int
    mean: tuple = CLIP_MEAN
    std: tuple = CLIP_STD
    interpolation: str = "bicubic"
    crop: str = "short_side"
    short_side: int = 0


def published_pixels(entry, resolution):
    """The `Pixels` of an entry of open_clip's: mean, std, interpolation and resize_mode, each optional."""
    known = {key: entry[key] for key in ("mean", "std", "interpolation") if entry.get(key)}
    return Pixels(resolution, crop=OPENCLIP_CROPS[entry.get("resize_mode", "shortest")], **known)


def describe(tower, width, pixels):
    """Put `width` and the preprocessing of images on a tower, as attributes -> the tower."""
    tower.width, tower.resolution = width, pixels.resolution
    tower.mean, tower.std = tuple(pixels.mean), tuple(pixels.std)
    tower.interpolation, tower.crop = pixels.interpolation, pixels.crop
    tower.short_side = pixels.short_side or pixels.resolution
    return tower


def normalise(images, mean, std):
    """uint8 (B, 3, H, W) -> float, by mean and std (3, 1, 1); float images are taken as normalised already."""
    return images if images.is_floating_point() else images.float().sub_(255 * mean).div_(255 * std)


def measure_width(model, resolution, name):
    """The output width of a model: a forward pass of shapes alone, on the meta device."""
    named = [*model.named_parameters(), *model.named_buffers()]
    shapes = {key: tensor.detach().to("meta") for key, tensor in named}
    training = model.training
    try:
        with torch.no_grad():
            images = torch.zeros(1, 3, resolution, resolution, device="meta")
            features = functional_call(model.eval(), shapes, (images,))
    except Exception as error:  # each library's own way to say that the size does not fit
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{name} cannot take images of {resolution} x {resolution} pixels: {reason}") from error
    finally:
        model.train(training)
    if features.dim() != 2:
        raise UserError(f"{name} gives features of shape {tuple(features.shape)}, where (B, width) is needed")
    return features.shape[1]
