"""CLIP-ViL's image geometry: resize, then centre on a black canvas.

The short side becomes m = 384 unless the long side would pass M = 640; the canvas is m x M, in the orientation of the
image. Images stay uint8 up to the device.
"""

import torch


def resized_size(height, width, m=384, M=640):
    """(height, width) after the resize: short side m, or less where the long side would pass M.

    Where the short side was rounded up the long one passes M, by one pixel for most shapes: the canvas crops it.
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
    """Whether images go on the portrait canvas: decided by their original size alone, and squares do.

    An image of 640 x 639 shrinks to an exact square; by its resized size it would leave the batch it was sorted into.
    """
    return width <= height


def canvas_size(height, width, m=384, M=640):
    """(height, width) of the canvas of an image, from its original size."""
    return (M, m) if is_portrait(height, width) else (m, M)


def dynamic_canvas(sizes, M=640, stride=32):
    """(height, width) that holds all resized `sizes`, rounded up to whole cells of the grid, at most M each way.

    Without the rounding the backbone's strides would drop up to a cell of real pixels at the right and the bottom.
    """
    return tuple(min(-(-max(side) // stride) * stride, M) for side in zip(*sizes))


def place_on_canvas(pictures, canvas):
    """Centre uint8 pictures (3, h, w) on one black canvas (H, W); an odd pixel goes to the left and the top.

    What is larger than the canvas is cropped about its centre.
    returns: images uint8 (N, 3, H, W), channels last in memory; boxes int64 (N, 4): top, left, height, width
    """
    images = torch.empty((len(pictures), 3, *canvas), dtype=torch.uint8, memory_format=torch.channels_last).zero_()
    boxes = []
    for image, picture in zip(images, pictures):
        (top, skip_top, height), (left, skip_left, width) = map(_centre, picture.shape[1:], canvas)
        visible = picture[:, skip_top : skip_top + height, skip_left : skip_left + width]
        image[:, top : top + height, left : left + width] = visible
        boxes.append((top, left, height, width))
    return images, torch.tensor(boxes)


def picture_box(size, canvas):
    """(top, left, height, width) of what is seen of a resized picture (h, w) on its canvas (H, W)."""
    (top, _, height), (left, _, width) = map(_centre, size, canvas)
    return top, left, height, width


def _centre(length, room):
    """(start on the canvas, start in the picture, visible length) along one axis."""
    start = (room - length) - (room - length) // 2
    return max(start, 0), max(-start, 0), min(length, room)
