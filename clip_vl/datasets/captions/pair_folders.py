"""Folders of images with captions beside them, as img2dataset writes: NAME.jpg with NAME.txt or NAME.json is a pair."""

from collections import Counter
from itertools import islice
from pathlib import Path

from clip_vl.datasets.captions.sidecars import MAX_TEXT, sidecar_captions
from clip_vl.datasets.captions.source import checked_below
from clip_vl.datasets.captions.table import MAX_LEFT_OUT, NO_CAPTION, CaptionTable, LeftOut, Record, build_table
from clip_vl.datasets.images.files import extension, is_image, unread_files, walk
from clip_vl.datasets.storage.cache import digest_of
from clip_vl.datasets.storage.left_out import report_left_out
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError

SIDECARS = (".txt", ".json")  # the first that has a caption counts
NO_IMAGES = (*SIDECARS, ".parquet")  # nobody expects an image there; .parquet is img2dataset's list of what it fetched
SAMPLED = 20  # images whose sidecars are read to see whether they hold captions


def find_sidecars(folder):
    """({path of an image below the folder: paths of its .txt and .json}, Counter {extension: other files})."""
    found, others = {}, Counter()
    for below, files in walk(folder):
        texts = {(Path(name).stem, extension(name)): below + name for name in files if extension(name) in SIDECARS}
        for name in files:
            if is_image(name):
                beside = [(Path(name).stem, each) for each in SIDECARS]
                found[below + name] = [texts[key] for key in beside if key in texts]
            elif extension(name) not in NO_IMAGES:
                others[extension(name) or "without an extension"] += 1
    return dict(sorted(found.items())), others


def are_pairs(folder, found):
    """Whether the files of `find_sidecars` are pairs: half of the images, or some where none is in a subfolder, have a
    sidecar, and one of the first ones holds words (boxes and other labels do not).
    """
    texts = [beside for beside in found.values() if beside]
    if not texts or (2 * len(texts) < len(found) and any("/" in image for image in found)):
        return False
    sample = (caption for beside in islice(texts, SAMPLED) for caption in _captions(folder, beside))
    return any(any(map(str.isalpha, caption)) for caption in sample)


def open_pairs(folder, found, others, cache_root, max_left_out=MAX_LEFT_OUT):
    """The pairs of `find_sidecars`, in the order of their paths; says what is left out. Raises DataError."""
    folder = Path(folder)
    states = [(name, status.st_size, status.st_mtime_ns) for beside in found.values() for name in beside
              for status in [(folder / name).stat()]]  # fmt: skip

    def records():
        for image, beside in found.items():
            captions, path = _captions(folder, beside), checked_below(folder, image)
            yield Record(path, captions) if captions else LeftOut(f"{folder}/{image}", NO_CAPTION)

    table, digest = build_table(cache_root, folder, {"pairs": digest_of([list(found), states])}, records, max_left_out)
    source = CaptionTable(table, digest, folder)
    dist.print0(f"{folder}: {len(source):,} images with captions beside them are read as pairs, not as classes")
    report_left_out(folder, unread_files(others), len(states) + len(found), noun="files")
    return source


def _captions(folder, beside):
    """[caption] of the first of the files that has one."""
    return next(filter(None, (sidecar_captions(*_read(folder, name), extension(name)) for name in beside)), [])


def _read(folder, name):
    path = Path(folder, name)
    try:
        with path.open("rb") as file:
            return path, file.read(MAX_TEXT + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
