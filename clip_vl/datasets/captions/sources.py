"""--train_data and --valid_data -> a source of captioned images (`caption_source`).

    pairs.csv,more.tsv:0.5,mscoco_captions,classes/train     separated by commas; `:0.5` is the weight of the one before

An entry is a path, or a name below --datasets_dir:
  FILE.csv .tsv .txt[@SPLITS]  a table (`caption_csv`); with splits the rows that its column `split` gives to them
  FILE.json .jsonl[@SPLITS]  COCO, Flickr or ImageNet-Captions (`caption_json`); splits as in @val or @train+restval
  FILE-{000..099}.tar        WebDataset shards, several joined by `::` (`tar_shards`)
  FOLDER[@SPLIT]             a Hugging Face data set (`hub_folder`) or the built-in scenes
  FOLDER                     images with captions beside them, NAME.txt or NAME.json (`pair_folders`), the tar shards in
                             it, or else a folder for each class (`class_folders`)
  shapes:FOLDER[@SPLITS]     the built-in scenes of a data root that `python -m clip_vl.shapes` made
  mscoco_captions[@SPLITS]   Karpathy's split, karpathy/dataset_coco.json; mscoco_captions_x0.1 is every tenth image
  mscoco_captions_2014       official/captions_train2014.json; @val for captions_val2014.json
Without splits these are the training ones.
"""

import dataclasses
import re
from dataclasses import dataclass
from pathlib import Path

from clip_vl.datasets.captions.mixture import Mixture
from clip_vl.datasets.captions.source import is_remote
from clip_vl.datasets.captions.tar_names import expand_braces
from clip_vl.engine.errors import UserError

KARPATHY = "karpathy/dataset_coco.json"
TABLES, JSONS = (".csv", ".tsv", ".txt"), (".json", ".jsonl", ".ndjson")
PUBLISHED_X01 = 10  # mscoco_captions_x0.1
ENTRY = re.compile(r"(?P<path>.+?)(?:@(?P<splits>\w+(?:\+\w+)*))?(?::(?P<weight>\d+(?:\.\d+)?))?")


@dataclass(frozen=True)
class CaptionOptions:
    """How sources are read; fields are named as their flags.

    datasets_dir:  folder of named datasets and of caches
    images_dir:    folder of the images that a table names [the table's own]
    csv_*:         separator of tables [detected] and names of their columns
    max_left_out:  largest share of the captions of a file that may be left out
    dataset_size:  only the first n rows [all]
    """

    datasets_dir: str = "data"
    images_dir: str | None = None
    csv_separator: str | None = None
    csv_img_key: str = "filepath"
    csv_caption_key: str = "title"
    csv_label_key: str | None = None
    max_left_out: float = 0.5
    dataset_size: int | None = None


def open_sources(spec, options):
    """The `Mixture` of all entries of `spec`, read with `CaptionOptions`. Raises UserError, DataError."""
    entries = [entry.strip() for entry in (spec or "").split(",") if entry.strip()]
    if not entries:
        raise UserError("--train_data names no data; `clip_vl/datasets/captions/sources.py` lists what it may name")
    if options.dataset_size is not None and options.dataset_size < 1:
        raise UserError(f"--dataset_size {options.dataset_size} must be at least 1")
    parsed = [_parse(entry) for entry in entries]
    sources = [open_entry(path, splits, options) for path, splits, _ in parsed]
    return Mixture(sources, [weight for *_, weight in parsed], options.dataset_size)


def open_held_out(spec, options):
    """The source of `spec` without a limit on its size, since dataset_size is of training data; None without `spec`."""
    return open_sources(spec, dataclasses.replace(options, dataset_size=None)) if spec else None


def _parse(entry):
    """(path, splits or None, weight) of an entry; an entry that exists as a path is that path."""
    if Path(entry).exists() or is_remote(entry):
        return entry, None, 1.0
    match = ENTRY.fullmatch(entry)
    weight = float(match["weight"] or 1)
    if weight == 0:
        raise UserError(f"{entry}: the weight must be above 0; leave the entry out instead")
    return match["path"], match["splits"] and match["splits"].split("+"), weight


def open_entry(name, splits, options):
    """The source of one entry."""
    cache_root = Path(options.datasets_dir) / "cache"
    if is_remote(name):
        raise UserError(f"{name} is a remote address, and training fetches nothing: download it and name the file")
    if name.startswith("mscoco_captions") and not Path(name).exists():
        return _open_coco(name, splits, options, cache_root)
    if ".tar" in name:
        from clip_vl.datasets.captions.tar import open_shards

        return open_shards(
            "::".join(_located(part, options) for part in name.split("::")), cache_root, options.max_left_out
        )
    path = Path(_located(name.removeprefix("shapes:"), options))
    if path.is_dir():
        return _open_folder(path, splits, options, cache_root)
    if not path.is_file():
        raise UserError(f"{name} is not there, neither as a path nor below --datasets_dir {options.datasets_dir}")
    if path.suffix.lower() in JSONS:
        from clip_vl.datasets.captions.json import open_caption_json

        return open_caption_json(path, splits, options, cache_root)
    if path.suffix.lower() not in TABLES:
        raise UserError(f"{path} has no known format; tables, JSON, .tar shards and folders are read")
    from clip_vl.datasets.captions.csv import open_csv

    return open_csv(path, options, cache_root, splits)


def _located(name, options):
    """The path itself if it exists, else the path below datasets_dir if that exists."""
    first = expand_braces(name)[0]
    below = not Path(first).exists() and Path(options.datasets_dir, first).exists()
    return str(Path(options.datasets_dir, name)) if below else name


def _open_coco(name, splits, options, cache_root):
    from clip_vl.datasets.captions.json import open_caption_json

    root = Path(options.datasets_dir)
    if name == "mscoco_captions_2014":
        path = root / "official" / f"captions_{(splits or ['train'])[0]}2014.json"
        splits, every = None, 1
    elif name in ("mscoco_captions", "mscoco_captions_x0.1"):
        path, every = root / KARPATHY, PUBLISHED_X01 if name.endswith("x0.1") else 1
    else:
        raise UserError(f"{name} is not one of mscoco_captions, mscoco_captions_2014 and mscoco_captions_x0.1")
    if not path.is_file():
        raise UserError(f"{name} is read from {path}, which does not exist; data/README.md describes it")
    return open_caption_json(path, splits, options, cache_root, every)


def _open_folder(path, splits, options, cache_root):
    if (path / KARPATHY).is_file():
        from clip_vl.datasets.captions.json import open_caption_json

        return open_caption_json(path / KARPATHY, splits, options, cache_root)
    from clip_vl.datasets.captions.pair_folders import are_pairs, find_sidecars, open_pairs

    found, others = find_sidecars(path)
    if are_pairs(path, found):
        _refuse_splits(path, splits, "of pairs")
        return open_pairs(path, found, others, cache_root, options.max_left_out)
    if shards := sorted(map(str, path.glob("*.tar"))):
        from clip_vl.datasets.captions.tar import open_shards

        _refuse_splits(path, splits, "of shards")
        return open_shards("::".join(shards), cache_root, options.max_left_out)
    from clip_vl.datasets.hub.splits import is_hub_folder

    if is_hub_folder(path):
        from clip_vl.datasets.hub.captions import open_hub

        if splits and len(splits) > 1:
            raise UserError(f"{path}@{'+'.join(splits)}: name one split, and the others as entries of their own")
        return open_hub(path, splits and splits[0], options, cache_root)
    _refuse_splits(path, splits, "of classes")
    from clip_vl.datasets.captions.folders import open_classes

    return open_classes(path, cache_root)


def _refuse_splits(path, splits, what):
    if splits:
        raise UserError(f"{path}@{'+'.join(splits)}: a folder {what} has no splits; name the folder of the split")
