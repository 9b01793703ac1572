"""Prepare a data root: report what is missing, measure its images, convert official files, build LMDBs and caches.

    python -m clip_vl.prepare check                      which parts exist, and the commands that fetch the others
    python -m clip_vl.prepare convert --need vqa         official files of VQA v2, COCO, VG, GQA -> annotation files
    python -m clip_vl.prepare check --need gqa           the parts of a sibling task: gqa, snli_ve, nlvr2 or nlvr
    python -m clip_vl.prepare digests                    the sha256 of every image, which readers then check
    python -m clip_vl.prepare images                     an LMDB of resized JPEGs, for --use_lmdb
    python -m clip_vl.prepare caches                     the annotation caches, which a run would build at its start

An interrupted command continues when it is repeated, and does nothing when all is done. `check` also moves images out
of nested Visual Genome and NLVR2 folders, and writes width_heigths.json, the list of usable images, and
unreadable_images.txt. Its exit code is 3 when a part that --need requires is missing. data/README.md has the layout.
"""

from dataclasses import dataclass

from clip_vl.flags.parser import flag, parse


@dataclass
class PrepareFlags:
    """Data root"""

    command: str = flag("check", "Command: check, convert, digests, images or caches.", positional=True)
    data_root: str = flag("data", "Folder of the images, annotations, vocabulary and weights (data/README.md).")
    need: list[str] = flag(
        ["pretrain", "vqa", "weights"],
        "Purposes: pretrain, vqa, test, weights, gqa, snli_ve, nlvr2, nlvr [pretrain vqa weights].",
    )
    tolerance: float = flag(0.001, "Largest share of an annotation file's entries that may lack a readable image.")
    num_workers: int = flag(4, "Number of threads that hash or resize images.", "--numWorkers")
    image_size_min: int = flag(384, "Short side of the images in the LMDB, in pixels.")
    image_size_max: int = flag(640, "Largest long side of the images in the LMDB, in pixels.")
    bert: str | None = flag(None, "BERT folder with the vocabulary of the caches [<data_root>/bert-base-uncased].")
    qa_sets: str | None = flag(None, "Answer sets of the pre-training caches, separated by commas [all].", "--qaSets")
    limit_source: str = flag("", "Sentence categories to exclude from the pre-training caches, separated by commas.")
    max_length: int = flag(20, "Largest number of tokens per sentence in the caches.")


FLAGS = parse(PrepareFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

from pathlib import Path

from tqdm import tqdm

from clip_vl.datasets.images.collections import COCO_VG, COLLECTIONS, digest_list_path
from clip_vl.datasets.images.inventory import list_collection
from clip_vl.datasets.lxmert.tasks import TASKS
from clip_vl.datasets.official.data_root import collections_of, hold_data_root, print_commands
from clip_vl.datasets.official.files import TRAINING_FILES
from clip_vl.datasets.official.parts import OFFICIAL_PARTS, PARTS, PURPOSES, TASK_PARTS
from clip_vl.engine import dist, signals
from clip_vl.engine.errors import DataError, UserError, printable


def check(root, args):
    """Report on the data root; DataError when something that --need names is missing."""
    from clip_vl.datasets.official.check import check_data_root
    from clip_vl.models.clip.published import OPENAI_SHA256

    check_data_root(root, args.need, args.tolerance, OPENAI_SHA256)


def convert(root, args):
    """Make the annotation files that are missing and can be made; DataError when a needed one cannot."""
    from clip_vl.datasets.official.conversions import conversion_steps
    from clip_vl.evaluation.vqa_score import normalise, soft_scores

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
            optional = " and are optional" if step.is_optional else ""
            print_commands(f"{', '.join(to_make)} cannot be made yet{optional}; first:", first)
            continue
        print_commands(f"{', '.join(to_make)} would hold more after:", fetch(step.optional))
        print("wrote", *step.run(), sep="\n  ")
    if undone:
        raise DataError(f"{', '.join(undone)} cannot be made before the files named above are in {root}")
    print(f"every annotation file for {', '.join(args.need)} is there")


def record_images(root, args):
    """Record the digests of the images of every collection; an image that changes afterwards counts as damaged."""
    from clip_vl.datasets.images.digest_list import record_digests

    for collection in COLLECTIONS:
        names, path = list_collection(root, collection)[0], digest_list_path(root, collection)
        if not names:
            continue
        with tqdm(total=len(names), desc=f"digests of {collection.name}", unit="image", disable=None) as bar:
            new, unreadable = record_digests(path, root, names, args.num_workers, bar.update)
        print(f"{path} has the digests of {len(names) - len(unreadable):,} images, {new:,} of them new")
        for name, reason in [*unreadable.items()][:10]:
            print(printable(f"  left out: {root / name} cannot be read: {reason}"))


def build_image_lmdbs(root, args):
    """Build the LMDBs of resized images that --use_lmdb reads: one for each collection of the purposes."""
    for collection in collections_of(args.need):
        build_image_lmdb(root, collection, args)


def build_image_lmdb(root, collection, args):
    from clip_vl.datasets.images.image_folders import ImageFolders
    from clip_vl.datasets.images.image_lmdb import store_path
    from clip_vl.datasets.images.image_lmdb_writer import write_images

    paths, m, M = list_collection(root, collection)[0], args.image_size_min, args.image_size_max
    if not paths:
        folders = ", ".join(collection.folders.values())
        raise DataError(
            f"{root} has no images in {folders}; `python -m clip_vl.prepare check` says where they come from"
        )
    target = store_path(root, m, M, collection)
    source = ImageFolders(root, collection)
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
    """Build the annotation caches of the published splits, exactly as the programs would."""
    from clip_vl.datasets.lxmert.annotations import build_pretrain_annotations, build_vqa_annotations
    from clip_vl.datasets.lxmert.answers import AnswerTable, read_label_vocab
    from clip_vl.datasets.lxmert.wordpiece import load_tokenizer

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
    for name, task in TASKS.items():
        if name not in args.need:
            continue
        for files in task_files(root, name):
            annotations = build_vqa_annotations(
                files,
                answers=task.classes or read_label_vocab(root / name),
                image_sizes=root / task.collection.sizes,
                collection=task.collection,
                read_entry=task.read_entry,
                **common,
            )
            report_cache([f"{name} {path.stem}" for path in files], annotations)


def task_files(root, name):
    """The annotation files of a sibling task, in the groups that its program reads; groups with missing files not."""
    groups = [[root / name / f"{split}.json" for split in group] for group in TASKS[name].splits]
    groups = [files for files in groups if all(path.exists() for path in files)]
    if not groups:
        raise DataError(
            f"{root / name} has none of its files; `python -m clip_vl.prepare check --need {name}` says how"
        )
    return groups


def report_cache(names, annotations):
    print(f"{', '.join(names)}: {len(annotations):,} sentences of {len(annotations.image_ids):,} images")


COMMANDS = {
    "check": check,
    "convert": convert,
    "digests": record_images,
    "images": build_image_lmdbs,
    "caches": build_caches,
}


def main(args):
    root = Path(args.data_root)
    if args.command not in COMMANDS:
        raise UserError(f"there is no command {args.command!r}; the commands are {', '.join(COMMANDS)}")
    if unknown := set(args.need) - set(PURPOSES):
        raise UserError(f"--need {' '.join(sorted(unknown))} is none of {', '.join(PURPOSES)}")
    if not root.is_dir():
        raise UserError(f"there is no folder {root}; create it, or point --data_root to the data")
    signals.listen(can_raise=True)
    signals.release("stopped; the work done is kept, and the same command continues it")
    try:
        with hold_data_root(root):
            COMMANDS[args.command](root, args)
    except OSError as error:
        raise UserError(f"{error.filename or root} cannot be read or written: {error.strerror}") from error


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
