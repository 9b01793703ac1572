"""Saliency maps of the report: heat in colour over the image in grey."""

import numpy as np

from clip_vl.reports.images import THUMBNAIL, jpeg_uri

WARM, HOT = (255, 200, 0), (225, 20, 0)  # of no heat, where it is transparent, and of most
OPAQUE = 0.8  # share of the colour where the heat is 1
NOTE = (
    "Saliency by {}: colour over the image in grey shows which cells raise the score of the caption above it; "
    "each image has a scale of its own, up to its hottest cell."
)
NO_NOTE = "There is no saliency map for this tower: {}."


def drawn(image, saliency, box=None):
    """(small JPEG with the heat over the image as a data URI, or None without heat; what `saliency` says of its method)

    image: uint8 (3, H, W), what the model saw;  saliency: (heat (h, w) in 0..1 or None, method)
    box:   top, left, height, width of the image on its canvas: only that is shown
    """
    heat, method = saliency
    return (None if heat is None else overlay(np.asarray(image), heat, box)), method


def overlay(image, heat, box=None):
    """The data URI of `drawn`. Heat is rounded to 256 levels before anything else, and stretched to the image."""
    from PIL import Image

    levels = Image.fromarray((heat * 255).round().astype(np.uint8))
    _, H, W = image.shape
    heat = np.asarray(levels.resize((W, H), Image.Resampling.BICUBIC), np.float32)[..., None] / 255  # (H, W, 1)
    grey = np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L"), np.float32)[..., None]
    colour = (1 - heat) * np.float32(WARM) + heat * np.float32(HOT)
    mixed = grey + OPAQUE * heat * (colour - grey)  # (H, W, 3)
    if box is not None:
        top, left, height, width = map(int, box)
        mixed = mixed[top : top + height, left : left + width]
    shown = Image.fromarray(mixed.round().astype(np.uint8))
    shown.thumbnail((THUMBNAIL, THUMBNAIL))
    return jpeg_uri(shown)


def add_saliency(wanted, saliency):
    """Puts saliency maps on cards -> the sentences about them for gallery.json's note.

    wanted: [(card, [(caption, what `saliency` takes)])];  saliency: -> what `drawn` gives
    """
    notes = {}
    for card, pairs in wanted:
        found = [(caption, *saliency(*pair)) for caption, *pair in pairs]
        card["saliency"] = [[caption, shown] for caption, shown, _ in found if shown]
        notes |= {(NO_NOTE, NOTE)[bool(shown)].format(method): None for _, shown, method in found}
    return " ".join(notes)
