"""Checks a data root: which parts are missing, the sizes of its images, and annotations without their images."""

from pathlib import Path

from clip_vl.datasets.images.collections import COCO_VG, NLVR2
from clip_vl.datasets.images.inventory import count_absent, list_collection, measure_images, save_unreadable
from clip_vl.datasets.images.unnesting import flatten_nlvr2, flatten_visual_genome
from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.official.data_root import collections_of, is_main, print_commands
from clip_vl.datasets.official.parts import PARTS, TASK_PARTS, clip_parts
from clip_vl.datasets.storage.file_digests import file_digest
from clip_vl.engine.errors import DataError, printable


def check_data_root(root, need, tolerance, clip_digests):
    """Print a report on a data root; DataError where something that a purpose of `need` needs is missing.

    tolerance:    share of the entries of an annotation file whose image may be absent or unreadable
    clip_digests: {name: sha256} of OpenAI's checkpoints
    """
    unnest_images(root, need)
    missing = report_parts(root, need, clip_digests)
    usable = set().union(*(report_images(root, collection) for collection in collections_of(need)))
    faulty = report_annotations(root, need, usable, tolerance)
    if missing or faulty:
        faults = {"missing or damaged": missing, "without enough of their images, or of the wrong form": faulty}
        text = "; ".join(f"{', '.join(names)} {fault}" for fault, names in faults.items() if names)
        raise DataError(f"{root} is not ready for {', '.join(need)}: {text}")
    print(f"\n{root} is ready for {', '.join(need)}")


def unnest_images(root, need):
    """Move images out of nested folders, and print how many were moved and how many were not."""
    for collection, name, flatten in (
        (COCO_VG, "Visual Genome", flatten_visual_genome),
        (NLVR2, "NLVR2", flatten_nlvr2),
    ):
        moved, kept = flatten(root) if collection in collections_of(need) else (0, [])
        if moved:
            print(f"{name}: {moved:,} images moved out of nested folders")
        if kept:
            first = printable(kept[0])
            print(f"{name}: {len(kept):,} images stay nested, since other files have their names, such as {first}")


def report_parts(root, need, clip_digests):
    """Print the state of each part, then the commands that fetch what is missing; returns the needed paths amiss.

    The parts of pre-training and VQA are printed with these purposes even where they are optional; others when used.
    """
    main = (*PARTS, *clip_parts(clip_digests))
    amiss, needed, others = [], [], []
    for part in (*main, *TASK_PARTS):
        is_used = bool(set(part.uses) & set(need))
        if not is_used and not (part in main and is_main(need)):
            continue
        state = part_state(root, part)
        print(f"  {state:8} {part.path:36} {part.what}")
        if state in ("missing", "damaged"):
            is_needed = is_used and not part.is_optional
            (needed if is_needed else others).append(part.command(root, again=state == "damaged"))
            amiss += [part.path] * is_needed
    print_commands("to fetch what is needed:", needed)
    print_commands(f"to fetch what is optional for {', '.join(need)}:", others)
    return amiss


def part_state(root, part):
    """The state of a part: ok, missing, damaged (not the published file), or own (a table that the user made)."""
    path = part.find(root)
    if path is None:
        return "missing"
    if part.sha256 is None or part.sha256 == file_digest(path, Path(root) / "cache"):
        return "ok"
    return "own" if path.suffix == ".json" else "damaged"


def report_images(root, collection):
    """Measure the images that have no size yet; returns the keys of those that exist and can be read."""
    images, others = list_collection(root, collection)
    measured = measure_images(root, images, collection)
    print(f"\nimages: {len(images):,}, of which {measured.new:,} newly measured for {collection.sizes}")
    if others:
        print(f"  {len(others):,} other names in the image folders are ignored, such as {others[0]!r}")
    listing = save_unreadable(root, measured.unreadable, collection)
    if measured.unreadable:
        print(f"  {len(measured.unreadable):,} images are unreadable; {listing} names them and says why")
    return measured.usable(images)


def report_annotations(root, need, usable, tolerance):
    """Print how many entries of each needed annotation file lack their image; returns the paths with too many."""
    faulty = []
    for part in (*PARTS, *TASK_PARTS):
        if not part.is_list or not set(part.uses) & set(need) or not part.find(root):
            continue
        task = TASKS.get(part.path.partition("/")[0])
        form = {"collection": task.collection, "images_of": task.images_of} if task else {}
        try:
            entries, absent, example = count_absent(Path(root) / part.path, usable, **form)
            first = f", {example!r} first" if absent else ""
            print(f"  {part.path:36} {entries:,} entries, {absent:,} without image{first}")
            is_faulty = not entries or absent > tolerance * entries
        except DataError as error:
            print(f"  {printable(error)}")
            is_faulty = True
        if is_faulty:
            faulty.append(part.path)
    return faulty
