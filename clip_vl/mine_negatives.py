"""Mine hard negatives for NegCLIP: swapped captions, and for each image the images most like it.

    python -m clip_vl.mine_negatives --captions data/coco/dataset_coco.json --split train restval \\
        --embeddings data/features/ViT-B-32_coco.npy --output data/negatives/train_neg_clip.tsv
    bash scripts/mine_negatives.bash cpu data/negatives/coco.tsv 0 2 --captions captions.tsv --embeddings e.npy

Captions are a CSV or TSV with the columns filepath and title, or a JSON file of COCO's form by Karpathy or a list of
{image, caption}. Embeddings have a row per image, in the order of the images' first mention, or a row per caption.
Each image gets one caption that something can be swapped in; images without one are left out before neighbours are
sought, and counted. Several processes share the work and write what one would. Files appear whole or not at all.
"""

from dataclasses import dataclass

from clip_vl.engine.flags import flag, parse


@dataclass
class MineFlags:
    """Mining"""

    captions: str = flag("", "Captions: CSV, TSV or JSON.")
    split: list[str] = flag([], "Splits of a Karpathy file to take, such as train restval [all].")
    csv_img_key: str = flag("filepath", "Column of image paths.", "--csv-img-key")
    csv_caption_key: str = flag("title", "Column of captions.", "--csv-caption-key")
    embeddings: str | None = flag(None, "Image embeddings: .npy (N, D), or .safetensors with one tensor.")
    output: str = flag("data/negatives/train_neg_clip.tsv", "TSV to write; the report goes beside it, as .json.")
    lmdb: str | None = flag(None, "LMDB to write as well, with ids that survive subsetting.")
    neighbours: int = flag(3, "Near images of each image.", "--k")
    duplicate_above: float = flag(0.99, "Images with a larger cosine similarity are one picture, not neighbours.")
    method: str = flag("auto", "exact, ivf, hnsw, or auto: exact up to a million images, then ivf.")
    tagger: str = flag("auto", "spacy, bundled, or auto: spaCy where its English model is installed.")
    five_draws: bool = flag(False, "Draw five swaps of any class, instead of one swap of each class.")
    seed: int = flag(9595, "Seed of the draws.")
    overwrite: bool = flag(False, "Replace what is there.")


FLAGS = parse(MineFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import csv
import itertools
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.caption_swaps import draw_swaps
from clip_vl.datasets.json_stream import read_json
from clip_vl.datasets.negative_table import NegativeRow, write_lmdb, write_tsv
from clip_vl.datasets.tagger import load_tagger
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_json
from clip_vl.engine.random import numpy_rng
from clip_vl.evaluation.approximate import find_neighbours

# ---- input


def read_captions(args):
    """[(image path, caption)], a pair per caption, in the order of the file."""
    path = Path(args.captions)
    if not args.captions:
        raise UserError("pass --captions, a CSV, TSV or JSON file")
    pairs = _json_pairs(path, args.split) if path.suffix == ".json" else _table_pairs(path, args)
    if not pairs:
        raise DataError(f"{path} has no captions" + (f" of split {' '.join(args.split)}" if args.split else ""))
    return pairs


def _json_pairs(path, splits):
    content = read_json(path)
    try:
        if isinstance(content, dict):
            images = [image for image in content["images"] if not splits or image["split"] in splits]
            return [
                ("/".join(filter(None, [image.get("filepath"), image["filename"]])), sentence["raw"])
                for image in images
                for sentence in image["sentences"]
            ]
        lists = [(e["image"], [e["caption"]] if isinstance(e["caption"], str) else e["caption"]) for e in content]
        return [(image, caption) for image, captions in lists for caption in captions]
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is no captions file of Karpathy's or a list of {{image, caption}}: {error}") from None


def _table_pairs(path, args):
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            tabs = "\t" in file.readline()
            file.seek(0)
            reader = csv.DictReader(file, delimiter="\t" if tabs else ",")
            missing = {args.csv_img_key, args.csv_caption_key} - set(reader.fieldnames or [])
            if missing:
                raise DataError(f"{path}:1: no column {min(missing)}; it has {', '.join(reader.fieldnames or [])}")
            pairs = []
            for row in reader:
                image, caption = row[args.csv_img_key], row[args.csv_caption_key]
                if image is None or caption is None:
                    raise DataError(f"{path}:{reader.line_num}: fewer fields than columns")
                pairs.append((image, caption))
            return pairs
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV or TSV file in UTF-8: {error}") from None


def read_embeddings(path, images, captions):
    """(images, D) float32, L2-normalised, from a file with a row per image, or per caption; captions: of each image."""
    try:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
            if len(tensors) != 1:
                raise DataError(f"{path} has the tensors {', '.join(sorted(tensors))}; one is expected")
            features = next(iter(tensors.values())).float()
        else:
            features = torch.from_numpy(np.load(path, allow_pickle=False).astype(np.float32, copy=False))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except DataError:
        raise
    except Exception as error:  # each library has its own for a damaged file
        raise DataError(f"{path} is no .npy or .safetensors file of numbers: {error}") from None
    total = sum(captions)
    if features.ndim != 2 or len(features) not in (images, total):
        raise DataError(f"{path} has the shape {tuple(features.shape)}; (N, D) with a row for each of {images:,} "
                        f"images or {total:,} captions is expected")  # fmt: skip
    if len(features) != images:
        features = features[torch.tensor([0, *itertools.accumulate(captions)])[:-1]]
    norms = features.norm(dim=1)
    wrong = torch.nonzero(~(torch.isfinite(norms) & (norms > 0)))
    if len(wrong):
        raise DataError(f"{path}: the embedding of image {int(wrong[0])} is zero or not finite")
    return features / norms[:, None]


def encode_images(args, images):
    """(len(images), D) embeddings of image files by an image tower."""
    raise UserError("pass --embeddings, a .npy or .safetensors file with a row per image")


# ---- mining


def swap_captions(images, tagger, args):
    """[(caption, [Swap]) or None] for this process's part of [(path, [captions])]: its first caption with a swap.

    The captions of an image are tried in an order drawn for it.
    """
    rank, ranks = dist.rank(), dist.world_size()
    found = []
    for number in range(len(images) * rank // ranks, len(images) * (rank + 1) // ranks):
        rng = numpy_rng(args.seed, "caption swaps", number)
        captions = images[number][1]
        chosen = None
        for place in rng.permutation(len(captions)):
            swaps = draw_swaps(tagger(captions[place]), rng, seed_variant=args.five_draws)
            if swaps:
                chosen = captions[place], swaps
                break
        found.append(chosen)
    return found


def group_by_image(pairs):
    """[(image path, [captions])], in the order of the images' first mention."""
    images = {}
    for image, caption in pairs:
        images.setdefault(image, []).append(caption)
    return list(images.items())


def refuse_to_replace(args):
    for path in filter(None, (args.output, args.lmdb)):
        if Path(path).exists() and not args.overwrite:
            raise UserError(f"{path} is there already: pass --overwrite to replace it, or choose another name")


def write(args, rows, report):
    """The table, the LMDB and last the report, which so stands for all of them."""
    output = Path(args.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.with_suffix(".json").unlink(missing_ok=True)
        write_tsv(output, rows)
        if args.lmdb:
            shutil.rmtree(args.lmdb, ignore_errors=True)
            write_lmdb(args.lmdb, rows)
        atomic_json(output.with_suffix(".json"), report)
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None


def main(args):
    device = dist.setup()
    refuse_to_replace(args)
    dist.barrier()
    images = group_by_image(read_captions(args))
    counts = [len(captions) for _, captions in images]
    if args.embeddings:
        features = read_embeddings(args.embeddings, len(images), counts)
    else:
        features = encode_images(args, [image for image, _ in images])
    tagger = load_tagger(args.tagger)

    swapped = list(itertools.chain(*dist.gather(swap_captions(images, tagger, args))))
    kept = [number for number, chosen in enumerate(swapped) if chosen]
    ids = torch.arange(len(kept))
    found, how = find_neighbours(features[kept].to(device), args.neighbours, ids=ids, method=args.method,
                                 duplicate_above=args.duplicate_above, seed=args.seed)  # fmt: skip
    rows = [
        NegativeRow(
            swapped[i][0], images[i][0], tuple(swap.text for swap in swapped[i][1]), tuple(j for j in near if j >= 0)
        )
        for i, near in zip(kept, found.rows.tolist())
    ]
    swaps = [swap for number in kept for swap in swapped[number][1]]
    report = {
        "program": "mine_negatives", "args": vars(args), "tagger": tagger.name, "captions": sum(counts),
        "images": len(images), "images_without_swap": len(images) - len(kept), "rows": len(rows),
        "negative_captions": len(swaps), "swaps": dict(sorted(Counter(swap.kind for swap in swaps).items())),
        "neighbours": sum(len(row.neg_image) for row in rows), "duplicates_excluded": int(found.duplicates.sum()),
        "rows_with_fewer_neighbours": sum(len(row.neg_image) < args.neighbours for row in rows), **how,
        "processes": dist.world_size(),
    }  # fmt: skip
    if dist.rank() == 0:
        write(args, rows, report)
    dist.barrier()
    dist.print0(f"{args.output}: {len(rows):,} rows of {len(images):,} images, {len(swaps):,} negative captions, "
                f"neighbours {how['method']} with recall {how['recall']:.3f}")  # fmt: skip


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
