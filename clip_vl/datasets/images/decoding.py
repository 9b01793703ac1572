"""Bytes of an image file -> uint8 RGB tensor, and its antialiased resize.

Image files are untrusted: sizes are checked in the header before anything is decoded.
"""

import functools
import io
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from clip_vl.datasets.images.files import readable_formats
from clip_vl.engine.errors import DataError, ProgramError
from clip_vl.engine.readers.colours import to_rgb

MAX_PIXELS = 128 * 2**20  # 384 MiB of uint8 RGB: far above any photograph, far below a decompression bomb
MAX_SCANNED = 20 * MAX_PIXELS  # pixels times scans of a JPEG, each of which libjpeg decodes over the whole image


class DamagedImage(DataError):
    """An image that cannot be used; `path` says which, `reason` why."""

    def __init__(self, path, reason):
        super().__init__(path, reason)  # both, so that the error survives the way back from a loader worker
        self.path, self.reason = str(path), reason

    def __str__(self):
        return f"{self.path}: {self.reason}"

    def lines(self):
        return (str(self),)


@contextmanager
def _opened(file, name):
    """The Pillow image of a path or byte stream, its header read and its pixels not; errors become DamagedImage."""
    try:
        with Image.open(file, formats=readable_formats()) as picture:
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{picture.width}x{picture.height} pixels")
            yield picture
    except (MemoryError, ProgramError):
        raise  # the first says something of the machine, not of the image; the second is ours
    except Image.UnidentifiedImageError:
        raise DamagedImage(name, f"is not an image of a known format ({', '.join(readable_formats())})") from None
    except Image.DecompressionBombError as error:
        raise DamagedImage(name, f"is too large to decode, the limit is {MAX_PIXELS:,} pixels: {error}") from None
    except Exception as error:  # a decoder fed with damaged bytes raises anything from ValueError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DamagedImage(name, f"cannot be read: {reason}") from error


def read_image_size(path, data=None):
    """(height, width) from the header of a file, or of its bytes; nothing is decoded. Raises DamagedImage."""
    with _opened(path if data is None else io.BytesIO(data), path) as picture:
        return picture.height, picture.width


@functools.cache
def jpeg_decoder():
    """torchvision's JPEG decoder, about twice as fast as Pillow's and equal to the bit.

    Importing torchvision takes seconds: whoever starts loader workers calls this first, and the workers inherit it.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    return lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def decode_image(data, name="image"):
    """The bytes of an image file -> uint8 (3, height, width), RGB as of `to_rgb`. Raises DamagedImage with `name`.

    The EXIF orientation is ignored, as in the published pipelines; that of a TIFF is part of the format and applied, as
    Pillow does. Of several images the first is taken. A truncated file is damaged: nothing is filled in with grey.
    """
    with _opened(io.BytesIO(data), name) as picture:
        if picture.format in ("JPEG", "MPO"):
            _check_scans(data, picture.width * picture.height)
        if picture.format in ("JPEG", "MPO") and picture.mode in ("RGB", "L"):
            try:
                return jpeg_decoder()(data)
            except RuntimeError:
                pass  # most likely damaged: Pillow says in words how
        return torch.from_numpy(np.array(to_rgb(picture))).permute(2, 0, 1)


def _check_scans(data, pixels):
    """Raise ValueError for a JPEG of so many scans (usual: 1, progressive about 10) that decoding takes minutes.

    Coded data never holds FF DA: an FF in it is followed by 00 or a restart marker. A scan takes at least 10 bytes, so
    the markers of most photographs need not be counted.
    """
    if len(data) // 10 * pixels <= MAX_SCANNED:
        return
    values = np.frombuffer(data, np.uint8)
    scans = np.count_nonzero((values[:-1] == 0xFF) & (values[1:] == 0xDA))  # five times as fast as bytes.count
    if scans * pixels > MAX_SCANNED:
        raise ValueError(f"its {scans:,} scans of {pixels:,} pixels would take too long to decode; save it again")


def resize(image, size, interpolation="bilinear"):
    """uint8 (3, H, W) -> uint8 (3, h, w), antialiased: Pillow's resize to within a level of 255.

    Columns are resized first, then rows, as in Pillow when the published towers were trained. Pillow 13 starts with the
    rows where they shrink much more; its images then differ by 0.1 to 0.3 levels on average from those of Pillow 12.
    """
    if tuple(image.shape[1:]) == tuple(size):
        return image
    # A batch of one in channels-last strides: PyTorch then resizes, and copies to a canvas, whole pixels at a time.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=tuple(size), mode=interpolation, antialias=True)[0]
