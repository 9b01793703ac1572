"""A data root as a whole: the image collections of its purposes, commands that complete it, and a lock."""

import os
from contextlib import contextmanager, suppress
from pathlib import Path

from clip_vl.datasets.images.collections import COCO_VG
from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.official.parts import MAIN_PURPOSES
from clip_vl.engine.errors import UserError
from clip_vl.engine.files import TEMPORARY, try_lock


def is_main(need):
    """Whether purposes include pre-training or VQA, or none of a sibling task."""
    return bool(set(need) & set(MAIN_PURPOSES)) or not set(need) & set(TASKS)


def collections_of(need):
    """The image collections of some purposes; COCO and Visual Genome unless all are those of sibling tasks."""
    siblings = [TASKS[name].collection for name in TASKS if name in need]
    return [COCO_VG, *siblings] if is_main(need) else siblings


def print_commands(title, commands):
    """Print each command once: one archive may hold several parts."""
    if commands:
        print(f"\n{title}", *dict.fromkeys(commands), sep="\n  ")


@contextmanager
def hold_data_root(root):
    """Lock a data root for this process, and delete the temporary files that a killed one left in it."""
    descriptor = os.open(root, os.O_RDONLY)
    try:
        if not try_lock(descriptor):
            raise UserError(f"another process is preparing {root}; wait until it is done")
        image_folders = {str(Path(task.collection.sizes).parent) for task in TASKS.values()}
        for folder in ("", "lxmert", "vqa", "mscoco", *TASKS, *image_folders):
            for leftover in Path(root, folder).glob(f"{TEMPORARY}*"):
                with suppress(OSError):  # a read-only data root can still be checked
                    leftover.unlink()
        yield
    finally:
        os.close(descriptor)
