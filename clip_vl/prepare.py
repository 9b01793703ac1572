"""Make a data root ready: say what is missing, measure its images, convert official files, build stores and caches.

    python -m clip_vl.prepare check                      what is there, what is not, and the command that fetches it
    python -m clip_vl.prepare convert --need vqa         official VQA v2, COCO, VG and GQA files -> the formats used
    python -m clip_vl.prepare check --need gqa           the same for a sibling task: gqa, snli_ve, nlvr2 or nlvr
    python -m clip_vl.prepare digests                    the sha256 of every image, to which readers then hold them
    python -m clip_vl.prepare images                     an LMDB of resized JPEGs, for --use_lmdb
    python -m clip_vl.prepare caches                     the annotation caches, which a run would build at its start

Each may be interrupted and repeated: it goes on where it stopped, and does nothing when all is done. `check` also moves
the images of nested Visual Genome and NLVR2 folders to their place, and writes width_heigths.json, the list of usable
images, and unreadable_images.txt. It exits with 3 when something that --need names is missing. data/README.md has the
layout.
"""

from dataclasses import dataclass

from clip_vl.flags.parser import flag, parse


@dataclass
class PrepareFlags:
    """Data root"""

    command: str = flag("check", "check, convert, digests, images or caches.", positional=True)
    data_root: str = flag("data", "Folder with the images, annotations, vocabulary and weights (data/README.md).")
    need: list[str] = flag(
        ["pretrain", "vqa", "weights"],
        "For pretrain, vqa, test, weights, gqa, snli_ve, nlvr2, nlvr [pretrain vqa weights].",
    )
    tolerance: float = flag(0.001, "Share of an annotation file's entries whose image may be absent or unreadable.")
    num_workers: int = flag(4, "Threads that hash or resize images.", "--numWorkers")
    image_size_min: int = flag(384, "Short side of the images in the LMDB.")
    image_size_max: int = flag(640, "Their longest long side.")
    bert: str | None = flag(None, "BERT folder whose vocabulary the caches are for [<data_root>/bert-base-uncased].")
    qa_sets: str | None = flag(None, "As in pre-training: answer sets of the caches, separated by commas.", "--qaSets")
    limit_source: str = flag("", "As in pre-training: sentence categories to leave out of the caches.")
    max_length: int = flag(20, "Tokens of a sentence in the caches.")


FLAGS = parse(PrepareFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from pathlib import Path

from tqdm import tqdm

from clip_vl.datasets.images.collections import COCO_VG, COLLECTIONS, NLVR2, digest_list
from clip_vl.datasets.images.digests import record_digests
from clip_vl.datasets.images.folders import (
    count_absent,
    flatten_nlvr2,
    flatten_visual_genome,
    list_images,
    measure_images,
    save_unreadable,
)
from clip_vl.datasets.images.source import ImageSource
from clip_vl.datasets.images.store import store_path, write_images
from clip_vl.datasets.lxmert.annotations import build_pretrain_annotations, build_vqa_annotations
from clip_vl.datasets.lxmert.answers import AnswerTable, read_label_vocab
from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.datasets.official.conversions import conversion_steps
from clip_vl.datasets.official.data_root import MAIN_PURPOSES, OFFICIAL_PARTS, PARTS, PURPOSES, TASK_PARTS, clip_parts
from clip_vl.datasets.official.lxmert import TRAINING_FILES
from clip_vl.datasets.storage.digests import file_digest
from clip_vl.datasets.storage.locks import hold
from clip_vl.engine import dist, signals
from clip_vl.engine.errors import DataError, UserError, printable
from clip_vl.evaluation.vqa_score import normalise, soft_scores
from clip_vl.models.fused.pretrained import OPENAI_SHA256


def collections_of(need):
    """The image collections of some purposes; COCO and Visual Genome unless they are all of sibling tasks."""
    siblings = [TASKS[name].collection for name in TASKS if name in need]
    return [COCO_VG, *siblings] if is_main(need) else siblings


def is_main(need):
    return bool(set(need) & set(MAIN_PURPOSES)) or not set(need) & set(TASKS)


# ---- check ----


def check(root, args):
    """Report on the data root; DataError when something that is needed is missing."""
    unnest_images(root, args.need)
    missing = report_parts(root, args.need)
    usable = set().union(*(report_images(root, collection) for collection in collections_of(args.need)))
    faulty = report_annotations(root, usable, args)
    if missing or faulty:
        faults = {"missing or damaged": missing, "without enough of their images, or of the wrong form": faulty}
        text = "; ".join(f"{', '.join(names)} {fault}" for fault, names in faults.items() if names)
        raise DataError(f"{root} is not ready for {', '.join(args.need)}: {text}")
    print(f"\n{root} is ready for {', '.join(args.need)}")


def unnest_images(root, need):
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


def report_parts(root, need):
    """Print a line for each part, then the commands for what is missing; returns the needed paths that are amiss.

    The parts of the main job are listed with it whatever is needed of them; others only when they are used.
    """
    main = (*PARTS, *clip_parts(OPENAI_SHA256))
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
    print_commands(f"to fetch what {', '.join(need)} can do without:", others)
    return amiss


def print_commands(title, commands):
    """Each command once, since one archive may hold several parts."""
    if commands:
        print(f"\n{title}", *dict.fromkeys(commands), sep="\n  ")


def part_state(root, part):
    """ok, missing, or else not the published file: damaged, or for a table that can be made here, own."""
    path = part.find(root)
    if path is None:
        return "missing"
    if part.sha256 is None or part.sha256 == file_digest(path, root / "cache"):
        return "ok"
    return "own" if path.suffix == ".json" else "damaged"


def report_images(root, collection):
    """Measure what is not measured yet; returns the keys of the images that are there and readable."""
    images, others = list_images(root, collection)
    measured = measure_images(root, images, collection)
    print(f"\nimages: {len(images):,}, of which {measured.new:,} newly measured for {collection.sizes}")
    if others:
        print(f"  {len(others):,} other names in the image folders are ignored, such as {others[0]!r}")
    listing = save_unreadable(root, measured.unreadable, collection)
    if measured.unreadable:
        print(f"  {len(measured.unreadable):,} images are unreadable; {listing} names them and says why")
    return measured.usable(images)


def report_annotations(root, usable, args):
    """Print how many entries of each needed annotation file lack their image; returns the paths with too many."""
    faulty = []
    for part in (*PARTS, *TASK_PARTS):
        if not part.is_list or not set(part.uses) & set(args.need) or not part.find(root):
            continue
        task = TASKS.get(part.path.partition("/")[0])
        form = {"collection": task.collection, "images_of": task.images_of} if task else {}
        try:
            entries, absent, example = count_absent(root / part.path, usable, **form)
            first = f", {example!r} first" if absent else ""
            print(f"  {part.path:36} {entries:,} entries, {absent:,} without image{first}")
            is_faulty = not entries or absent > args.tolerance * entries
        except DataError as error:
            print(f"  {printable(error)}")
            is_faulty = True
        if is_faulty:
            faulty.append(part.path)
    return faulty


# ---- convert ----


def convert(root, args):
    """Make the annotation files that are not there yet and can be made; DataError when a needed one cannot."""
    known = {part.path: part for part in (*PARTS, *TASK_PARTS, *OFFICIAL_PARTS)}

    def fetch(names):
        return [known[name].command(root) for name in names if not known[name].find(root)]

    undone = []
    for step in conversion_steps(root, normalise, soft_scores):
        to_make = [name for name in step.makes if not (root / name).exists()]
        if step.purpose not in args.need or not to_make:
            continue
        if first := fetch(step.takes):
            undone += [] if step.is_optional else to_make
            needless = " and can be done without" if step.is_optional else ""
            print_commands(f"{', '.join(to_make)} cannot be made yet{needless}; first:", first)
            continue
        print_commands(f"{', '.join(to_make)} would hold more after:", fetch(step.optional))
        print("wrote", *step.run(), sep="\n  ")
    if undone:
        raise DataError(f"{', '.join(undone)} cannot be made before the files named above are in {root}")
    print(f"every annotation file for {', '.join(args.need)} is there")


# ---- digests, images and caches ----


def record_images(root, args):
    """The digests of the images of every collection that is there; from then on a file that differs is damaged."""
    for collection in COLLECTIONS:
        names, path = list_images(root, collection)[0], digest_list(root, collection)
        if not names:
            continue
        with tqdm(total=len(names), desc=f"digests of {collection.name}", unit="image", disable=None) as bar:
            new, unreadable = record_digests(path, root, names, args.num_workers, bar.update)
        print(f"{path} has the digests of {len(names) - len(unreadable):,} images, {new:,} of them new")
        for name, reason in [*unreadable.items()][:10]:
            print(printable(f"  left out: {root / name} cannot be read: {reason}"))


def build_stores(root, args):
    """The LMDBs of resized images, which --use_lmdb reads: one for each collection of the purposes."""
    for collection in collections_of(args.need):
        build_store(root, collection, args)


def build_store(root, collection, args):
    paths, m, M = list_images(root, collection)[0], args.image_size_min, args.image_size_max
    if not paths:
        folders = ", ".join(collection.folders.values())
        raise DataError(
            f"{root} has no images in {folders}; `python -m clip_vl.prepare check` says where they come from"
        )
    target = store_path(root, m, M, collection)
    source = ImageSource(root, collection)
    with tqdm(total=len(paths), desc="images", unit="image", disable=None) as bar:
        damaged = write_images(target, [root / path for path in paths], m, M, workers=args.num_workers,
                               check=lambda file, data: source.check(file.relative_to(root), data),
                               advance=bar.update)  # fmt: skip
    print(f"{target} holds {len(paths) - len(damaged):,} of {len(paths):,} images")
    for error in damaged[:10]:
        print(f"  left out: {printable(error)}")
    if len(damaged) > args.tolerance * len(paths):
        raise DataError(f"{len(damaged):,} of {len(paths):,} images are damaged; --tolerance is {args.tolerance}")


def build_caches(root, args):
    """The caches of the published splits, exactly as the programs would build them."""
    common = {
        "tokenizer": load_tokenizer(args.bert or root / "bert-base-uncased"),
        "cache_root": root / "cache",
        "max_length": args.max_length,
    }
    sizes = {"image_sizes": root / COCO_VG.sizes}
    if "pretrain" in args.need:
        table = AnswerTable(root / "lxmert" / "all_ans.json", args.qa_sets.split(",") if args.qa_sets else None)
        limit = [source for source in args.limit_source.split(",") if source]
        for names in (TRAINING_FILES, ("mscoco_minival",)):
            files = [root / "lxmert" / f"{name}.json" for name in names]
            report_cache(
                names, build_pretrain_annotations(files, answer_table=table, limit_source=limit, **sizes, **common)
            )
    splits = [("train", "nominival"), ("minival",)] * ("vqa" in args.need) + [("test",)] * ("test" in args.need)
    for names in splits:
        files = [root / "vqa" / f"{name}.json" for name in names]
        report_cache(names, build_vqa_annotations(files, answers=read_label_vocab(root / "vqa"), **sizes, **common))
    for name in TASKS:
        if name in args.need:
            build_task_caches(root, name, common)


def build_task_caches(root, name, common):
    """The caches of a sibling task, of those splits that are there."""
    task = TASKS[name]
    groups = [[root / name / f"{split}.json" for split in group] for group in task.splits]
    groups = [files for files in groups if all(path.exists() for path in files)]
    if not groups:
        raise DataError(
            f"{root / name} has none of its files; `python -m clip_vl.prepare check --need {name}` says how"
        )
    for files in groups:
        annotations = build_vqa_annotations(
            files,
            answers=task.classes or read_label_vocab(root / name),
            image_sizes=root / task.collection.sizes,
            collection=task.collection,
            read_entry=task.read_entry,
            **common,
        )
        report_cache([f"{name} {path.stem}" for path in files], annotations)


def report_cache(names, annotations):
    print(f"{', '.join(names)}: {len(annotations):,} sentences of {len(annotations.image_ids):,} images")


# ---- the program ----


COMMANDS = {
    "check": check,
    "convert": convert,
    "digests": record_images,
    "images": build_stores,
    "caches": build_caches,
}


def main(args):
    root = Path(args.data_root)
    if args.command not in COMMANDS:
        raise UserError(f"there is no command {args.command!r}; it is one of {', '.join(COMMANDS)}")
    if unknown := set(args.need) - set(PURPOSES):
        raise UserError(f"--need {' '.join(sorted(unknown))} is not among {', '.join(PURPOSES)}")
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; make it, or point --data_root to the data")
    signals.listen(can_raise=True)
    signals.release("stopped; what is done is kept, and the same command goes on from there")
    try:
        with hold(root):
            COMMANDS[args.command](root, args)
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read or written: {error.strerror}") from error


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
