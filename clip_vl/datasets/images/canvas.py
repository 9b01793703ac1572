"""CLIP-ViL's image geometry: resize, then centre on a black canvas.

The short side becomes m = 384 pixels, or less where the long side would exceed M = 640; the canvas is m x M, in the
orientation of the image. Images are uint8 until they are on the device.
"""

import torch


def resized_size(height, width, m=384, M=640):
    """(height, width) after the resize: short side m, or less where the long side would exceed M.

    Where the short side is rounded up the long side exceeds M, mostly by one pixel, which the canvas crops.
    """
    short, long = min(height, width), max(height, width)
    target = m
    if long / short * m > M:
        target = max(round(M * short / long), 1)
    if short == target:
        return height, width
    other = int(target * long / short)
    return (other, target) if width < height else (target, other)


def is_portrait(height, width):
    """Whether an image is placed on the portrait canvas, by its original size; squares are.

    An image of 640 x 639 is resized to a square: by its resized size it would not fit its batch.
    """
    return width <= height


def canvas_size(height, width, m=384, M=640):
    """(height, width) of the canvas of an image, from its original size."""
    return (M, m) if is_portrait(height, width) else (m, M)


def dynamic_canvas(sizes, M=640, stride=32):
    """(height, width) that holds all resized `sizes`, rounded up to a multiple of the stride, at most M per side.

    Without the rounding the backbone would drop up to a stride of image pixels at the right and the bottom.
    """
    return tuple(min(-(-max(side) // stride) * stride, M) for side in zip(*sizes))


def place_on_canvas(resized, canvas):
    """Centre uint8 images (3, h, w) on black canvases (H, W); an odd pixel of padding goes to the left and the top.

    An image that is larger than the canvas is cropped to its centre.
    returns: images uint8 (N, 3, H, W), channels last in memory; boxes int64 (N, 4): top, left, height, width
    """
    images = torch.empty((len(resized), 3, *canvas), dtype=torch.uint8, memory_format=torch.channels_last).zero_()
    boxes = []
    for image, source in zip(images, resized):
        (top, skip_top, height), (left, skip_left, width) = map(_centre, source.shape[1:], canvas)
        visible = source[:, skip_top : skip_top + height, skip_left : skip_left + width]
        image[:, top : top + height, left : left + width] = visible
        boxes.append((top, left, height, width))
    return images, torch.tensor(boxes)


def image_box(size, canvas):
    """(top, left, height, width) of the visible part of a resized image (h, w) on its canvas (H, W)."""
    (top, _, height), (left, _, width) = map(_centre, size, canvas)
    return top, left, height, width


def _centre(length, room):
    """(start on the canvas, start in the image, visible length) along one axis."""
    start = (room - length) - (room - length) // 2
    return max(start, 0), max(-start, 0), min(length, room)
