"""Bytes of an image file -> uint8 RGB tensor, and its antialiased resize. Sizes are checked before decoding."""

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
    """An image that cannot be used, with its `path` and the `reason`."""

    def __init__(self, path, reason):
        super().__init__(path, reason)  # both, for pickling by a loader worker
        self.path, self.reason = str(path), reason

    def __str__(self):
        return f"{self.path}: {self.reason}"

    def lines(self):
        return (str(self),)


@contextmanager
def _opened(file, name):
    """The Pillow image of a path or byte stream, of which only the header is read; errors become DamagedImage."""
    try:
        with Image.open(file, formats=readable_formats()) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
            yield image
    except (MemoryError, ProgramError):
        raise  # not caused by the image, or already one of ours
    except Image.UnidentifiedImageError:
        raise DamagedImage(name, f"is not an image of a known format ({', '.join(readable_formats())})") from None
    except Image.DecompressionBombError as error:
        raise DamagedImage(name, f"is too large to decode, the limit is {MAX_PIXELS:,} pixels: {error}") from None
    except Exception as error:  # damaged bytes raise anything from ValueError to struct.error
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DamagedImage(name, f"cannot be read: {reason}") from error


def read_image_size(path, data=None):
    """(height, width) from the header of a file, or of its bytes, without decoding. Raises DamagedImage."""
    with _opened(path if data is None else io.BytesIO(data), path) as image:
        return image.height, image.width


@functools.cache
def jpeg_decoder():
    """torchvision's JPEG decoder, about twice as fast as Pillow's, with identical results.

    Importing torchvision takes seconds: call this before loader workers start, and they inherit the import.
    """
    from torchvision.io import ImageReadMode, decode_jpeg

    return lambda data: decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def decode_image(data, name="image"):
    """The bytes of an image file -> uint8 (3, height, width), RGB as of `to_rgb`. Raises DamagedImage with `name`.

    The EXIF orientation is ignored, as in the published pipelines; that of a TIFF is applied, as Pillow does. The first
    of several images is read. A truncated file is damaged: it is not filled with grey.
    """
    with _opened(io.BytesIO(data), name) as image:
        if image.format in ("JPEG", "MPO"):
            _check_scans(data, image.width * image.height)
        if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
            try:
                return jpeg_decoder()(data)
            except RuntimeError:
                pass  # most likely damaged: Pillow's error says how
        return torch.from_numpy(np.array(to_rgb(image))).permute(2, 0, 1)


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
