"""The images of a data root, read from its folders, checked against recorded digests, decoded and resized."""

from pathlib import Path

import torch

from clip_vl.datasets.images.canvas import resized_size
from clip_vl.datasets.images.collections import COCO_VG, digest_list_path, image_path, relative_path
from clip_vl.datasets.images.decoding import DamagedImage, decode_image, jpeg_decoder, resize

class ImageFolders:
    """The images in the folders of a data root, checked against recorded digests where there are any.

    No file stays open, so that every loader worker can have a copy.
    """

    kind = "images"

    def __init__(self, data_root, collection=COCO_VG):
        self.data_root, self.collection = Path(data_root), collection
        recorded = digest_list_path(data_root, collection)
        self.digests = None
        if recorded.exists():
            from clip_vl.datasets.images.digest_list import DigestList

            self.digests = DigestList(recorded)
        jpeg_decoder()

    def read(self, img_id):
        """The bytes of an image file. DamagedImage where it is missing or differs from its recorded digest."""
        name = relative_path(img_id, self.collection)
        path = self.data_root / name
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DamagedImage(path, f"cannot be read: {error.strerror}") from None
        self.check(name, data)
        return data

    def check(self, name, data):
        """Raise DamagedImage where `data` differs from the digest recorded for `name`, a path below the data root."""
        if self.digests and (complaint := self.digests.complaint(name, data)):
            raise DamagedImage(self.data_root / name, complaint)

    def load(self, img_id, m=384, M=640, recorded_size=None):
        """The resized image, uint8 (3, h, w). Raises DamagedImage.

        recorded_size: (height, width) by which the batch was chosen. An image of another size would be cropped by the
                       canvas of that batch and counts as damaged.
        """
        path = image_path(self.data_root, img_id, self.collection)
        image = decode_image(self.read(img_id), path)
        original = tuple(image.shape[1:])
        check_recorded(path, original, recorded_size)
        return resize(image, resized_size(*original, m, M))

    @staticmethod
    def blank(m, M, size):
        """A black image, resized, that replaces a damaged one of that original (height, width)."""
        return torch.zeros((3, *resized_size(*size, m, M)), dtype=torch.uint8)


def check_recorded(name, size, recorded_size):
    """Raise DamagedImage where the (height, width) of an image differs from the recorded one, if there is one."""
    if recorded_size is not None and tuple(recorded_size) != tuple(size):
        (height, width), (recorded_height, recorded_width) = size, recorded_size
        reason = f"is {width}x{height} but recorded as {recorded_width}x{recorded_height} (width x height)"
        raise DamagedImage(name, f"{reason}; `python -m clip_vl.prepare` records the sizes anew")
