"""Image files -> uint8 pictures: where an image lies, how large it is, decoding, resizing, one canvas for a batch.

The geometry is CLIP-ViL's: the short side becomes m = 384 unless the long one would pass M = 640, and the picture is
centred on a black canvas of m x M whose orientation follows the original. Pictures stay uint8 up to the device.
Image files are foreign bytes: their size is read from the header before anything of that size is allocated.
"""

import functools
import io
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from clip_vl.datasets.images.digests import LIST, DigestList
from clip_vl.datasets.images.files import readable_formats
from clip_vl.engine.errors import DataError, ProgramError
from clip_vl.engine.readers.colours import to_rgb

COCO_FOLDERS = ("train2014", "val2014", "test2015")
VG_FOLDER = "vg_raw_images/VG_100K"
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


# ---- where images lie ----


class Collection(NamedTuple):
    """The images of one data set.

    folders: part of an image id -> folder under the data root; the first part found in the id counts
    sizes:   the file that records [height, width] of every image
    """

    name: str
    folders: dict
    suffix: str
    sizes: str


COCO_VG = Collection(
    "coco_vg",
    {name: f"mscoco/{name}" for name in COCO_FOLDERS} | {"": VG_FOLDER},
    ".jpg",
    "mscoco/width_heigths.json",  # (sic) the published name; its values are [height, width]
)
GQA = Collection("gqa", {"": "gqa_raw_images/images"}, ".jpg", "gqa_raw_images/width_heigths.json")
FLICKR30K = Collection("flickr30k", {"": "flickr30k_images"}, ".jpg", "flickr30k_images/width_heigths.json")
NLVR2 = Collection(
    "nlvr2",
    {f"{name}-": f"nlvr2_raw_images/{name}" for name in ("train", "dev", "test1", "test2")},
    ".png",
    "nlvr2_raw_images/width_heigths.json",
)
NLVR = Collection("nlvr", {"": "nlvr_raw_images"}, ".png", "nlvr_raw_images/width_heigths.json")
COLLECTIONS = (COCO_VG, GQA, FLICKR30K, NLVR2, NLVR)


def relative_path(img_id, collection=COCO_VG):
    """The path of an image under the data root, for example mscoco/train2014/COCO_train2014_000000000009.jpg.

    Of COCO and Visual Genome, an id with the name of a COCO folder in it lies in that folder, any other is a Visual
    Genome number. Ids come from annotation files: one that is not a plain file name is refused with DataError.
    """
    if not img_id or not img_id.isprintable() or "/" in img_id or "\\" in img_id or len(img_id.encode()) > 240:
        raise DataError(f"img_id {img_id!r:.80} is not a plain file name; image ids name files of the image folders")
    folder = next((folder for part, folder in collection.folders.items() if part in img_id), None)
    if folder is None:
        parts = ", ".join(collection.folders)
        raise DataError(f"img_id {img_id!r:.80} is in no folder of {collection.name}: one of {parts} must be in it")
    return f"{folder}/{img_id}{collection.suffix}"


def image_path(data_root, img_id, collection=COCO_VG):
    """The file of an image; never outside its folder."""
    return Path(data_root, relative_path(img_id, collection))


def size_key(relative):
    """The key of width_heigths.json for a path under the data root: the published file says data/ whatever the root."""
    return f"data/{relative}"


def digest_list(data_root, collection=COCO_VG):
    """Where the digests of a collection's images are recorded, in a data root in which they are."""
    return Path(data_root, collection.sizes).with_name(LIST)


# ---- reading ----


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


# ---- geometry ----


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


def resize(image, size):
    """uint8 (3, H, W) -> uint8 (3, h, w), bilinear with antialiasing: Pillow's BILINEAR to within a level."""
    if tuple(image.shape[1:]) == tuple(size):
        return image
    # A batch of one that says it is channels last: PyTorch then resizes, and copies to the canvas, whole pixels.
    batch = image.permute(1, 2, 0)[None].permute(0, 3, 1, 2)
    return F.interpolate(batch, size=tuple(size), mode="bilinear", antialias=True)[0]


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


# ---- the images of a data root ----


class ImageSource:
    """The images in the folders of a data root, held to their recorded digests where there are any.

    It holds no open file, so any worker can have a copy.
    """

    kind = "pictures"

    def __init__(self, data_root, collection=COCO_VG):
        self.data_root, self.collection = Path(data_root), collection
        recorded = digest_list(data_root, collection)
        self.digests = DigestList(recorded) if recorded.exists() else None
        jpeg_decoder()

    def read(self, img_id):
        """The bytes of the image file. Raises DamagedImage, also where it is missing or not what was recorded."""
        name = relative_path(img_id, self.collection)
        path = self.data_root / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedImage(path, f"cannot be read: {error.strerror}") from None
        self.check(name, data)
        return data

    def check(self, name, data):
        """Raise DamagedImage where `data` is not what was recorded for the file `name`, a path below the data root."""
        if self.digests and (complaint := self.digests.complaint(name, data)):
            raise DamagedImage(self.data_root / name, complaint)

    def load(self, img_id, m=384, M=640, recorded_size=None):
        """The resized picture, uint8 (3, h, w). Raises DamagedImage.

        recorded_size: (height, width) by which the batch was chosen. An image of another size would be cropped by the
        canvas of that batch, so it counts as damaged.
        """
        path = image_path(self.data_root, img_id, self.collection)
        image = decode_image(self.read(img_id), path)
        original = tuple(image.shape[1:])
        check_recorded(path, original, recorded_size)
        return resize(image, resized_size(*original, m, M))

    @staticmethod
    def blank(m, M, size):
        """A black picture in the place of a damaged one of that (height, width)."""
        return torch.zeros((3, *resized_size(*size, m, M)), dtype=torch.uint8)


def check_recorded(name, size, recorded_size):
    """Raise DamagedImage unless an image has the (height, width) that was recorded for it, where one was."""
    if recorded_size is not None and tuple(recorded_size) != tuple(size):
        (height, width), (recorded_height, recorded_width) = size, recorded_size
        reason = f"is {width}x{height} but recorded as {recorded_width}x{recorded_height} (width x height)"
        raise DamagedImage(name, f"{reason}; `python -m clip_vl.prepare` records the sizes anew")
