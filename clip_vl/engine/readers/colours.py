"""Conversion of Pillow images to RGB: one rule for alpha, palettes, CMYK and 16 bits, in models and reports."""

BITS_PER_SAMPLE = 258  # the TIFF tag


def to_rgb(image):
    """A Pillow image of any mode -> one of mode RGB. Raises ValueError where the range of its values is unknown.

    Alpha is dropped first, so that a pixel keeps its stored colour whatever its transparency: no image is composited on
    a background. Of 16-bit and 12-bit grey the upper 8 bits are kept.
    """
    import numpy as np
    from PIL import Image

    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise ValueError("its pixels are signed, of 32 bits or fractions; save it with 8 or 16 bits a channel")
    if image.mode.startswith("I"):  # Pillow's conversion would clip at 255
        bits = image.tag_v2.get(BITS_PER_SAMPLE, (16,))[0] if image.format == "TIFF" else 16
        image = Image.fromarray((np.asarray(image) >> (bits - 8)).astype(np.uint8))
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode == "P":
        image.load()
        image.info.pop("transparency", None)  # otherwise Pillow warns that it drops it
    return image.convert("RGB")
