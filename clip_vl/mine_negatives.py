"""Mine hard negatives for NegCLIP: swapped captions, and for each image the images most like it.

    python -m clip_vl.mine_negatives --train_data mscoco_captions@train+restval --images_dir data/mscoco \
        --image_model ViT-B-32 --pretrained_image_model --output data/coco/train_neg_clip.tsv
    python -m clip_vl.mine_negatives --train_data pairs.tsv --load snap/align/NAME/epoch_2.pt --output negatives.tsv
    bash scripts/mine_negatives.bash cpu negatives.tsv 0 2 --train_data pairs.tsv --embeddings e.npy

Captions are read in the forms that `align` reads; images are compared by the image side of a dual encoder (--load), by
an image tower, or by a file with one row per image (in the order of their first mention) or per row of the data. Each
image gets one caption in which something can be swapped; images without one are left out before neighbours are sought,
and counted. Several processes share the work and write what one process would. Files appear whole or not at all. The
report names the folder in which the table's paths begin, where `negclip` reads it.
"""

import dataclasses
from dataclasses import dataclass

from clip_vl.flags.captions import SourceFlags
from clip_vl.flags.dual import ImageTowerFlags, SharedTowerFlags, TextTowerFlags, recalled
from clip_vl.flags.evaluation import EvaluationFlags
from clip_vl.flags.parser import flag, parse


@dataclass
class MineFlags(EvaluationFlags, SourceFlags, ImageTowerFlags, TextTowerFlags, SharedTowerFlags):
    """Mining"""

    output: str = flag("data/negatives/train_neg_clip.tsv", "TSV to write, with the report beside it as .json.")
    train_data: str | None = flag(None, "Captioned images, in the forms that `align` reads.", "--captions")
    embeddings: str | None = flag(None, "File of image embeddings: .npy (N, D), or .safetensors with one tensor.")
    lmdb: str | None = flag(None, "LMDB to write as well, whose ids stay valid when rows are left out.")
    neighbours: int = flag(3, "Number of nearest images of each image.")
    duplicate_above: float = flag(
        0.99, "Cosine similarity above which two images count as duplicates and not as neighbours."
    )
    method: str = flag(
        "auto", "Search of neighbours: exact, ivf, hnsw, or auto for exact up to a million images and ivf above."
    )
    tagger: str = flag(
        "auto", "Part-of-speech tagger: spacy, bundled, or auto for spaCy if its English model is installed."
    )
    plausible: bool = flag(
        False, "Keep only negative captions in which every two neighbouring words are neighbours in some caption; "
               "others can be told to be false from the text alone.",
    )  # fmt: skip
    five_draws: bool = flag(False, "Draw five swaps of any class, instead of one swap of each class.")


FLAGS = parse(MineFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import itertools
import os
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.captions.source import NumberedPairs
from clip_vl.datasets.captions.sources import open_sources
from clip_vl.datasets.negatives.swaps import draw_swaps
from clip_vl.datasets.negatives.table import IMAGES_DIR, NegativeRow, report_of, write_lmdb, write_tsv
from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.datasets.negatives.word_pairs import WordPairs
from clip_vl.encoding.encode import ImagesOf
from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_json
from clip_vl.engine.random import numpy_rng
from clip_vl.evaluation.neighbours.approximate import find_neighbours

# ---- input


def captions_by_image(source, train_data, images_dir):
    """([row], [(image path, [captions])]), each image once, in the order of first mention."""
    if not source.image_files:
        raise UserError(f"--train_data {train_data} has images inside of shards or tables, and `negclip` reads image "
                        "files: unpack them")  # fmt: skip
    pairs = NumberedPairs(source)
    captions = [[] for _ in pairs.rows]
    for image, number in zip(pairs.image_of_text.tolist(), pairs.numbers.tolist()):
        captions[image].append(source.text(number))
    root = images_root(train_data, images_dir)
    return pairs.rows, [(_below(root, source.name(int(row))), texts) for row, texts in zip(pairs.rows, captions)]


def images_root(train_data, images_dir):
    """The folder in which the table's paths begin: --images_dir, or that of the first entry of --train_data."""
    return Path(images_dir or Path(train_data.partition(",")[0]).parent)


def _below(root, name):
    """The image's path as the table has it: relative to the folder `root`."""
    path = os.path.relpath(name, root)
    if path.startswith(os.pardir):
        raise UserError(f"the image {name} is not below {root}; --images_dir names a folder that holds all images")
    return path


def read_embeddings(path, rows, total):
    """(images, D) float32, L2-normalised, from a file with a row per image, or for each of the data's `total` rows.

    rows: (images,) the row of each image
    """
    try:
        if Path(path).suffix == ".safetensors":
            from clip_vl.engine.readers.tensor_files import read_safetensors

            tensors = read_safetensors(path)
            if len(tensors) != 1:
                raise DataError(f"{path} has the tensors {', '.join(sorted(tensors))}; one is expected")
            features = next(iter(tensors.values()))
            if features.is_complex():
                raise ValueError("its values are complex")
            features = features.float()
        else:
            values = np.load(path, allow_pickle=False)
            if values.dtype.kind not in "fiu":
                raise ValueError(f"its values are of the type {values.dtype}")
            features = torch.from_numpy(values.astype(np.float32, copy=False))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None
    except DataError:
        raise
    except Exception as error:  # each library has its own for a damaged file
        raise DataError(f"{path} is no .npy or .safetensors file of numbers: {error}") from None
    if features.ndim != 2 or len(features) not in (len(rows), total):
        raise DataError(f"{path} has the shape {tuple(features.shape)}; (N, D) with a row for each of {len(rows):,} "
                        f"images or {total:,} rows is expected")  # fmt: skip
    if len(features) != len(rows):
        features = features[torch.from_numpy(rows)]
    norms = features.norm(dim=1)
    wrong = torch.nonzero(~(torch.isfinite(norms) & (norms > 0)))
    if len(wrong):
        raise DataError(f"{path}: the embedding of image {int(wrong[0])} is zero or not finite")
    return features / norms[:, None]


def encode_images(source, rows, device, args):
    """(images, D) embeddings of the images in these rows, L2-normalised, encoded once and kept. Raises DataError at an
    image that cannot be read.
    """
    from clip_vl.datasets.images.crops import eval_crop
    from clip_vl.models.dual.sides import open_image_side

    side = open_image_side(args.towers(), device)
    features = args.encoder(device).cached(
        ImagesOf(source, eval_crop(side.tower, args.image_crop)), rows, lambda batch: side.features(batch["images"]),
        source=source.digest, model=f"mining {side.digest} {args.image_crop}",
    )  # fmt: skip
    return side.project(torch.from_numpy(np.array(features.values)))


# ---- mining


def swap_captions(images, tagger, seed, five_draws=False, plausible=False):
    """[(caption, [Swap]) or None] for this process's part of [(path, [captions])]: the first caption with a swap.

    The captions of an image are tried in an order drawn for it.
    """
    options = {"seed_variant": five_draws}
    if plausible:
        options["allowed"] = WordPairs(itertools.chain.from_iterable(captions for _, captions in images))
    rank, ranks = dist.rank(), dist.world_size()
    found = []
    for number in range(len(images) * rank // ranks, len(images) * (rank + 1) // ranks):
        rng = numpy_rng(seed, "caption swaps", number)
        captions = images[number][1]
        chosen = None
        for index in rng.permutation(len(captions)):
            swaps = draw_swaps(tagger(captions[index]), rng, **options)
            if swaps:
                chosen = captions[index], swaps
                break
        found.append(chosen)
    return found


def refuse_to_replace(args):
    for path in filter(None, (args.output, args.lmdb)):
        if Path(path).exists() and not args.overwrite:
            raise UserError(f"{path} is there already: pass --overwrite to replace it, or choose another name")


def write(args, rows, report):
    """The table, the LMDB and last the report, which so stands for all of them."""
    output = Path(args.output)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        for path in filter(None, (args.lmdb, output)):
            report_of(path).unlink(missing_ok=True)
        write_tsv(output, rows)
        if args.lmdb:
            shutil.rmtree(args.lmdb, ignore_errors=True)
            write_lmdb(args.lmdb, rows)
        root = images_root(args.train_data, args.images_dir).resolve()
        for path in filter(None, (args.lmdb, output)):
            folder = os.path.relpath(root, Path(path).parent.resolve())
            atomic_json(report_of(path), report | {IMAGES_DIR: folder})
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}") from None


def main(args):
    device = dist.setup()
    args = recalled(args)
    refuse_to_replace(args)
    dist.barrier()
    source = open_sources(args.train_data, args.caption_options())
    rows_of_images, images = captions_by_image(source, args.train_data, args.images_dir)
    counts = [len(captions) for _, captions in images]
    if args.embeddings:
        features = read_embeddings(args.embeddings, rows_of_images, len(source))
    else:
        features = encode_images(source, rows_of_images, device, args)
    tagger = load_tagger(args.tagger)

    mine = swap_captions(images, tagger, args.seed, args.five_draws, args.plausible)
    swapped = list(itertools.chain(*dist.gather(mine)))
    kept = [number for number, chosen in enumerate(swapped) if chosen]
    if not kept:
        raise DataError(f"{args.train_data}: none of {len(images)} images has a caption in which two words can be "
                        "swapped" + " with a plausible result: leave out --plausible" * args.plausible)  # fmt: skip
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
        "program": "mine_negatives", "args": dataclasses.asdict(args), "tagger": tagger.name, "captions": sum(counts),
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
