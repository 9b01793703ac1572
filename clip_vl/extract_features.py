"""Grid features of a visual tower for every image of a data root, to train from with --features instead of pixels.

    python -m clip_vl.extract_features --output data/features/RN50.lmdb                            COCO and VG
    python -m clip_vl.extract_features --collection gqa --output data/features/RN50_gqa.h5         or HDF5
    bash scripts/extract_features.bash 0,1,2,3 data/features/RN50.lmdb 9590 4                      four GPUs

Reads the images that the collection's width_heigths.json lists (`python -m clip_vl.prepare check` writes it) and the
tower's weights; writes float16 features (C, h, w) of each image on its canvas, zero padding included, as the tower sees
them in training: 1 MB per image for an RN50 at 384 x 640. With several processes each writes a shard, and the first one
merges them. It may be killed at any moment: run again, it goes on where it stopped.
"""

from dataclasses import asdict, dataclass, replace

from clip_vl.flags.parser import flag, given, parse


@dataclass
class ExtractFlags:
    """Feature extraction"""

    output: str = flag("data/features/RN50.lmdb", "Store to write: a name that ends in .lmdb, .h5 or .hdf5.")
    data_root: str = flag("data", "Folder with the images and weights (data/README.md).")
    collection: str = flag("coco_vg", "Which images: coco_vg, gqa, flickr30k, nlvr2 or nlvr.")
    clip_model_name: str = flag(
        "RN50", "Visual tower: RN50, RN101, RN50x4, RN50x16, ViT-B/32, ViT-B/16, ViT-L/14, RN-tiny or RN-micro."
    )
    clip_weights: str | None = flag(None, "Its weights [<data_root>/clip/<name>.pt].")
    load: str | None = flag(
        None, "Stem of a checkpoint whose tower to use instead, such as snap/pretrain/NAME/Epoch09."
    )
    random_init: bool = flag(False, "Random weights, to try things out.")
    image_size_min: int = flag(384, "Short side of an image after resizing, and of its canvas.")
    image_size_max: int = flag(640, "Long side of the canvas.")
    use_lmdb: bool = flag(False, "Read images from the LMDBs that `python -m clip_vl.prepare images` writes.")
    batch_size: int = flag(32, "Images per process and forward pass.", "--batchSize")
    num_workers: int = flag(0, "Loader workers of each process.", "--numWorkers")
    max_images: int | None = flag(None, "Only the first N images.")
    max_damaged: float = flag(0.001, "Share of missing or damaged images that is tolerated; each one is named.")
    seed: int = flag(9595, "Seed of --random_init.")
    bf16: bool | None = flag(None, "bfloat16 autocast [on where the device is fast at it].")
    fp16: bool = flag(False, "float16 autocast; on a CPU it means bfloat16.")
    tqdm: bool = flag(False, "Progress bar on a terminal.")


FLAGS = parse(ExtractFlags, __doc__) if __name__ == "__main__" else None  # before torch: --help answers at once

import glob
import hashlib
from pathlib import Path

import numpy as np
import torch

from clip_vl.datasets.features.sources import grid_meta
from clip_vl.datasets.features.store import exists, merge_features, open_features, write_features
from clip_vl.datasets.images.canvas import canvas_size, is_portrait, place_on_canvas
from clip_vl.datasets.images.collections import COLLECTIONS, size_key
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.loader import build_loader, to_device
from clip_vl.datasets.lxmert.batches import open_images, size_file
from clip_vl.datasets.lxmert.samplers import EvalBatches
from clip_vl.datasets.storage.json_stream import read_json
from clip_vl.engine import dist, signals
from clip_vl.engine.errors import DataError, Interrupted, UserError, printable
from clip_vl.engine.optim import autocast
from clip_vl.engine.random import seed_step
from clip_vl.engine.signals import StopRequest
from clip_vl.models.clip.grid import GRID_ENCODERS
from clip_vl.models.fused.checkpoints import read_checkpoint
from clip_vl.models.fused.pretrained import detect_grid_encoder, load_clip_visual
from clip_vl.models.fused.settings import recall_fused
from clip_vl.models.fused.visual_tokens import VisualTower
from clip_vl.models.loading.weights import load_weights

TOWER = "visual_model."

GOES_ON = "stopped; what is extracted is kept, and the same command goes on from there"


class CanvasBatches:
    """`dataset[(_, places)]`: images uint8 (N, 3, H, W) on one canvas, their places, and damaged (image id, reason)."""

    def __init__(self, img_ids, sizes, source, args):
        self.img_ids, self.sizes, self.source, self.args = img_ids, sizes, source, args

    def __getitem__(self, key):
        m, M = self.args.image_size_min, self.args.image_size_max
        pictures, places, damaged = [], [], []
        for place in key[1].tolist():
            try:
                pictures.append(self.source.load(self.img_ids[place], m, M, self.sizes[place]))
                places.append(place)
            except DamagedImage as error:
                damaged.append(str(error))
        images, _ = place_on_canvas(pictures, canvas_size(*self.sizes[key[1][0]], m, M))
        return {"images": images, "places": places, "damaged": damaged}


def list_images(args, collection):
    """Image ids and their [height, width], as the size file of the collection lists them."""
    sizes = read_json(size_file(args, collection))
    folders = {size_key(folder) for folder in collection.folders.values()}
    keys = [key for key in sorted(sizes) if key.rpartition("/")[0] in folders][: args.max_images]
    if not keys:
        raise DataError(f"{size_file(args, collection)} lists no images of {collection.name}")
    return [Path(key).stem for key in keys], [sizes[key] for key in keys]


def build_tower(device, args):
    """The visual tower in evaluation mode; the name of what it is follows a checkpoint of --load."""
    seed_step(args.seed, 0, 0)
    state, path = read_checkpoint(args.load)
    if state is not None:
        if not any(TOWER in name for name in state):
            raise UserError(f"{path} has no visual tower to extract with: it was trained from --features")
        args.clip_model_name = detect_grid_encoder(state) or args.clip_model_name
    if args.clip_model_name not in GRID_ENCODERS:
        known = ", ".join(GRID_ENCODERS)
        raise UserError(f"--clip_model_name {args.clip_model_name} is not a grid encoder; choose one of {known}")
    grid = GRID_ENCODERS[args.clip_model_name]
    tower = VisualTower(grid, bn_mode="frozen")
    if state is not None:
        load_weights(tower, {n.partition(TOWER)[2]: t for n, t in state.items() if TOWER in n}, source=path,
                     ignore=("visual.attnpool.", "visual.proj"))  # fmt: skip
    elif not args.random_init:
        weights = args.clip_weights or Path(args.data_root) / "clip" / f"{args.clip_model_name.replace('/', '-')}.pt"
        load_clip_visual(tower.visual, weights, "Put it there or point --clip_weights to it.")
    return tower.to(device, memory_format=torch.channels_last).eval(), grid


def weights_digest(tower):
    """One digest over all weights, so that a store is never filled from two towers."""
    digest = hashlib.sha256()
    for name, tensor in tower.state_dict().items():
        digest.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


@torch.no_grad()
def extract(tower, writer, dataset, batches, stop, device, args):
    """Store the features of the images of `batches`, places in the dataset; returns how many images were damaged."""
    damaged = 0
    loader = build_loader(dataset, 0, batches, args, device)
    for batch in dist.progress(loader, "features", args.tqdm):
        for reason in batch["damaged"]:
            print(printable(f"warning: {reason}; left out"), flush=True)
        damaged += len(batch["damaged"])
        if not batch["places"]:
            continue
        with autocast(device, args.bf16, args.fp16):
            grids = tower(to_device(batch, device)["images"]).to(torch.float16).cpu().numpy()
        if not np.isfinite(grids).all():
            raise DataError(f"features beyond float16 in the batch of {dataset.img_ids[batch['places'][0]]}")
        for place, grid in zip(batch["places"], grids):
            height, width = dataset.sizes[place]
            writer.put(dataset.img_ids[place], {"grid": grid, "height": height, "width": width})
        if stop:
            raise Interrupted(GOES_ON)
    return damaged


def stored_before(output, meta):
    """The ids in the store at `output`, none if there is none; it must hold features of the same kind."""
    if not exists(output):
        return set()
    store = open_features(output)
    for name, value in meta.items():
        if store.meta.get(name) != value:
            found = f"{name} {store.meta.get(name)} and not {value}"
            raise UserError(f"{output} holds features of {found}; choose another --output")
    return set(store.keys())


def refuse_other_shards(output, shards):
    """Raise UserError where an interrupted run of another number of processes has left its part of the work."""
    for path in sorted(output.parent.glob(f"{glob.escape(output.stem)}.*-of-*{output.suffix}*")):
        name = path.name.removesuffix(".lock").removesuffix(".parts")
        if name not in {shard.name for shard in shards}:
            ranks = name.removesuffix(output.suffix).rpartition("-")[2]
            raise UserError(f"{path} is of a run with {ranks} processes: let {ranks} finish it, or remove the file")


def main(args):
    device = dist.setup()
    collection = next((c for c in COLLECTIONS if c.name == args.collection), None)
    if collection is None:
        names = ", ".join(c.name for c in COLLECTIONS)
        raise UserError(f"--collection {args.collection} is not one of {names}")
    if args.load:
        sizes = recall_fused(args.load, "_LXRT.pth", asdict(args), given(args), ("image_size_min", "image_size_max"))
        args = replace(args, **sizes)
    tower, grid = build_tower(device, args)
    img_ids, sizes = list_images(args, collection)
    meta = grid_meta(args, grid.stride) | {"channels": grid.grid_dim, "collection": collection.name}
    meta |= {"weights": weights_digest(tower)}

    output, rank, ranks = Path(args.output), dist.rank(), dist.world_size()
    output.parent.mkdir(parents=True, exist_ok=True)
    shards = [output.with_name(f"{output.stem}.{r}-of-{ranks}{output.suffix}") for r in range(ranks)]
    refuse_other_shards(output, shards)
    target = shards[rank] if ranks > 1 else output
    done = stored_before(output, meta) | stored_before(target, meta)
    dataset = CanvasBatches(img_ids, sizes, open_images(args_of_pixels(args), collection), args)
    canvases = is_portrait(*np.array(sizes).T).astype(np.int16)
    order = EvalBatches(canvases, args.batch_size, rank=rank, world_size=ranks)
    # Whole batches, though a part may be stored: smaller ones might round differently.
    batches = [places for places in order if not done.issuperset(img_ids[place] for place in places)]
    damaged, stop = 0, StopRequest()
    if any(dist.agree(len(batches), int(any(map(exists, shards))))):
        signals.hold(lambda: (Interrupted.exit_code, GOES_ON))  # a record is put whole or not at all
        with write_features(target, meta) as writer:
            damaged = extract(tower, writer, dataset, batches, stop, device, args)
        signals.release(GOES_ON)
        damaged = int(dist.sum_over_ranks(torch.tensor(damaged)))
        if ranks > 1 and rank == 0:
            merge_features(output, shards)
    dist.barrier()
    dist.print0(f"{output}: features of {len(open_features(output)):,} of {len(img_ids):,} images")
    if damaged > args.max_damaged * len(img_ids):
        raise DataError(f"{damaged} of {len(img_ids)} images are missing or damaged, more than --max_damaged allows")


def args_of_pixels(args):
    """The flags as `open_images` takes them: there are no features yet."""
    args.features = None
    return args


if __name__ == "__main__":
    dist.run_program(main, FLAGS)
