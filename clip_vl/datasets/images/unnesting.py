"""Moves the images of nested folders, as official archives unpack, up into the folder where they are read.

Each move is one rename within the file system: after an interrupt every image is whole in one of two folders, and a
repeat moves the rest. No file is overwritten: a copy of the same content is removed, a different file stays.
"""

import filecmp
import os
from pathlib import Path

from clip_vl.datasets.images.collections import COCO_VG, NLVR2, VG_FOLDER
from clip_vl.engine.errors import UserError


def flatten_visual_genome(root):
    """Move the images of VG_100K/VG_100K and VG_100K/VG_100K_2, as the official archives unpack, up into VG_100K.

    returns: the number of images moved, and the paths of those that stay because another file has their name
    """
    target = Path(root, VG_FOLDER)
    return _flatten(target, (target / "VG_100K", target / "VG_100K_2", target.with_name("VG_100K_2")), COCO_VG.suffix)


def flatten_nlvr2(root):
    """Move the images of nlvr2_raw_images/train/0 ... 99 up into train, and those of nlvr2_raw_images/images/train.

    The official archive unpacks into the latter. Returns as `flatten_visual_genome`.
    """
    target = Path(root, NLVR2.folders["train-"])
    parents = (target, target.with_name("images") / "train")
    return _flatten(target, [path for parent in parents for path in sorted(parent.glob("[0-9]*"))], NLVR2.suffix)


def _flatten(target, folders, suffix):
    moved, kept = 0, []
    for nested in folders:
        if not nested.is_dir() or nested.is_symlink():
            continue
        try:
            target.mkdir(exist_ok=True)
            for image in sorted(nested.glob(f"*{suffix}")):
                if _move(image, target / image.name):
                    moved += 1
                else:
                    kept.append(image)
            if not any(nested.iterdir()):
                nested.rmdir()
        except OSError as error:
            raise UserError(
                f"the images of {nested} cannot be moved up to {target}: {error.strerror}; move them by hand"
            ) from error
    return moved, kept


def _move(image, target):
    """Whether `image` is now at `target`: renamed, or removed as a copy of the same file there."""
    if not os.path.lexists(target):
        image.rename(target)
        return True
    if target.is_file() and filecmp.cmp(image, target, shallow=False):
        image.unlink()
        return True
    return False
