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
from pathlib import Path

from clip_vl.datasets.captions.mixture import Mixture
from clip_vl.datasets.captions.source import is_remote
from clip_vl.datasets.captions.tar_names import expand_braces
from clip_vl.engine.errors import UserError

KARPATHY = "karpathy/dataset_coco.json"
TABLES, JSONS = (".csv", ".tsv", ".txt"), (".json", ".jsonl", ".ndjson")
PUBLISHED_X01 = 10  # mscoco_captions_x0.1
ENTRY = re.compile(r"(?P<path>.+?)(?:@(?P<splits>\w+(?:\+\w+)*))?(?::(?P<weight>\d+(?:\.\d+)?))?")


def open_sources(spec, settings):
    """The `Mixture` of all entries of `spec`, cut to the first --dataset_size rows. Raises UserError, DataError."""
    entries = [entry.strip() for entry in (spec or "").split(",") if entry.strip()]
    if not entries:
        raise UserError("--train_data names no data; `clip_vl/datasets/captions/sources.py` lists what it may name")
    if settings.dataset_size is not None and settings.dataset_size < 1:
        raise UserError(f"--dataset_size {settings.dataset_size} must be at least 1")
    parsed = [_parse(entry) for entry in entries]
    sources = [open_entry(path, splits, settings) for path, splits, _ in parsed]
    return Mixture(sources, [weight for *_, weight in parsed], settings.dataset_size)


def open_held_out(spec, settings):
    """The source of --valid_data, whole whatever --dataset_size says of the training data; None where it names none."""
    return open_sources(spec, dataclasses.replace(settings, dataset_size=None)) if spec else None


def _parse(entry):
    """(path, splits or None, weight) of an entry; what exists under the whole name is that."""
    if Path(entry).exists() or is_remote(entry):
        return entry, None, 1.0
    match = ENTRY.fullmatch(entry)
    weight = float(match["weight"] or 1)
    if weight == 0:
        raise UserError(f"{entry}: the weight must be above 0; leave the entry out instead")
    return match["path"], match["splits"] and match["splits"].split("+"), weight


def open_entry(name, splits, settings):
    """The source of one entry."""
    cache_root = Path(settings.datasets_dir) / "cache"
    if is_remote(name):
        raise UserError(f"{name} is a remote address, and training fetches nothing: download it and name the file")
    if name.startswith("mscoco_captions") and not Path(name).exists():
        return _open_coco(name, splits, settings, cache_root)
    if ".tar" in name:
        from clip_vl.datasets.captions.tar import open_shards

        return open_shards(
            "::".join(_located(part, settings) for part in name.split("::")), cache_root, settings.max_left_out
        )
    path = Path(_located(name.removeprefix("shapes:"), settings))
    if path.is_dir():
        return _open_folder(path, splits, settings, cache_root)
    if not path.is_file():
        raise UserError(f"{name} is not there, neither as a path nor below --datasets_dir {settings.datasets_dir}")
    if path.suffix.lower() in JSONS:
        from clip_vl.datasets.captions.json import open_caption_json

        return open_caption_json(path, splits, settings, cache_root)
    if path.suffix.lower() not in TABLES:
        raise UserError(f"{path}: the form of its data is not known; tables, JSON, .tar shards and folders are")
    from clip_vl.datasets.captions.csv import open_csv

    return open_csv(path, settings, cache_root, splits)


def _located(name, settings):
    """The path itself where something is there, or else its place below --datasets_dir where something is."""
    first = expand_braces(name)[0]
    below = not Path(first).exists() and Path(settings.datasets_dir, first).exists()
    return str(Path(settings.datasets_dir, name)) if below else name


def _open_coco(name, splits, settings, cache_root):
    from clip_vl.datasets.captions.json import open_caption_json

    root = Path(settings.datasets_dir)
    if name == "mscoco_captions_2014":
        path = root / "official" / f"captions_{(splits or ['train'])[0]}2014.json"
        splits, every = None, 1
    elif name in ("mscoco_captions", "mscoco_captions_x0.1"):
        path, every = root / KARPATHY, PUBLISHED_X01 if name.endswith("x0.1") else 1
    else:
        raise UserError(f"{name} is not known; mscoco_captions, mscoco_captions_2014 and mscoco_captions_x0.1 are")
    if not path.is_file():
        raise UserError(f"{name} is read from {path}, which is not there; data/README.md says what it is")
    return open_caption_json(path, splits, settings, cache_root, every)


def _open_folder(path, splits, settings, cache_root):
    if (path / KARPATHY).is_file():
        from clip_vl.datasets.captions.json import open_caption_json

        return open_caption_json(path / KARPATHY, splits, settings, cache_root)
    from clip_vl.datasets.captions.pair_folders import are_pairs, find_sidecars, open_pairs

    found, others = find_sidecars(path)
    if are_pairs(path, found):
        _refuse_splits(path, splits, "of pairs")
        return open_pairs(path, found, others, cache_root, settings.max_left_out)
    if shards := sorted(map(str, path.glob("*.tar"))):
        from clip_vl.datasets.captions.tar import open_shards

        _refuse_splits(path, splits, "of shards")
        return open_shards("::".join(shards), cache_root, settings.max_left_out)
    from clip_vl.datasets.hub.splits import is_hub_folder

    if is_hub_folder(path):
        from clip_vl.datasets.hub.captions import open_hub

        if splits and len(splits) > 1:
            raise UserError(f"{path}@{'+'.join(splits)}: name one split, and the others as entries of their own")
        return open_hub(path, splits and splits[0], settings, cache_root)
    _refuse_splits(path, splits, "of classes")
    from clip_vl.datasets.captions.folders import open_classes

    return open_classes(path, cache_root)


def _refuse_splits(path, splits, what):
    if splits:
        raise UserError(f"{path}@{'+'.join(splits)}: a folder {what} has no splits; name the folder of the split")
