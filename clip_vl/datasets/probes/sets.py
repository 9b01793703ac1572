"""The probes by name: where their annotations and pictures lie below --datasets_dir, and what reads them."""

import re
from pathlib import Path

from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.datasets.probes import order as probe_order
from clip_vl.datasets.probes.aro import read_attribution, read_relation
from clip_vl.datasets.probes.crepe import read_productivity, read_systematicity
from clip_vl.datasets.probes.nlvr import read_nlvr
from clip_vl.datasets.probes.scenes import read_scenes
from clip_vl.datasets.probes.sugarcrepe import read_sugarcrepe
from clip_vl.datasets.probes.svo import addresses, read_svo
from clip_vl.datasets.probes.vlchecklist import read_vlchecklist
from clip_vl.datasets.probes.winoground import read_winoground
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError

# name -> (annotations, pictures), both below --datasets_dir, and what reads them
PLACES = {
    "winoground": ("probes/winoground", "probes/winoground", lambda path, args: [read_winoground(path)]),
    "crepe_productivity": ("probes/crepe_productivity", "vg_raw_images", lambda path, args: [read_productivity(path)]),
    "crepe_systematicity": ("probes/crepe_systematicity", "vg_raw_images",
                            lambda path, args: [read_systematicity(path)]),
    "sugarcrepe": ("probes/sugarcrepe", "mscoco", lambda path, args: [read_sugarcrepe(path)]),
    "vg_relation": ("probes/aro", "vg_raw_images", lambda path, args: [read_relation(path)]),
    "vg_attribution": ("probes/aro", "vg_raw_images", lambda path, args: [read_attribution(path)]),
    "coco_order": ("probes/coco_karpathy_test.json", "mscoco",
                   lambda path, args: [frozen_order("coco_order", path, args)]),
    "flickr30k_order": ("probes/flickr30k_test.json", "flickr30k_images",
                        lambda path, args: [frozen_order("flickr30k_order", path, args)]),
    "svo": ("probes/svo", "probes/svo/images", lambda path, args: read_svo(path)),
    "vlchecklist": ("probes/vlchecklist", "probes/vlchecklist",
                    lambda path, args: read_vlchecklist(path, args.first_cases)),
    "nlvr": ("nlvr", "nlvr_raw_images", lambda path, args: [read_nlvr(path)]),
    "scenes": ("shapes_pairs", "shapes_pairs", lambda path, args: [read_scenes(path)]),
    "scene_twins": ("shapes_twins", "shapes_twins", lambda path, args: [read_winoground(path)]),
}  # fmt: skip


def open_probes(args):
    """[(Probe, folder of its pictures)] of --probes. Raises UserError for what is not there."""
    if not args.probes:
        raise UserError(f"--probes names what to run: {', '.join(PLACES)}")
    found = []
    for name in dict.fromkeys(args.probes):
        if name not in PLACES:
            raise UserError(f"--probes {name} is not one of {', '.join(PLACES)}")
        path, images, read = PLACES[name]
        path = Path(args.annotations) if args.annotations else Path(args.datasets_dir, path)
        path = path / name if args.annotations and (path / name).exists() else path
        images = Path(args.images_dir or Path(args.datasets_dir, images))
        if name == "svo" and args.fetch_images:
            fetch_svo(path, images)
        for probe in read(path, args):
            probe.name = name if name == "scene_twins" else probe.name
            found.append((probe, images))
    return found


def fetch_svo(path, images):
    """Rank 0 downloads what is not there yet."""
    if dist.rank() == 0:
        from clip_vl.datasets.images.download import fetch_all

        table = path if path.is_file() else path / "svo_probes.csv"
        fetch_all(addresses(table), images, say=dist.print0)
    dist.barrier()


def frozen_order(name, captions, args):
    """The Probe of frozen shufflings in <datasets_dir>/probes/frozen; those that are not there are made from
    `captions`, a file of Karpathy's test captions. Without that file, whatever is frozen is read.
    """
    folder = Path(args.datasets_dir, "probes", "frozen")
    if args.order_seeds < 1:
        raise UserError(f"--order_seeds {args.order_seeds} must be at least 1")
    if not captions.is_file():
        paths = sorted(folder.glob(f"{name}_*_seed*.json"))
        if not paths:
            raise UserError(f"neither {captions} nor frozen shufflings in {folder} are there; see data/README.md")
        return probe_order.read_order(name, paths)
    tagger, source = load_tagger(args.tagger), probe_order.digest_of(captions)
    stem = f"{name}_{re.sub(r'[^A-Za-z0-9.]+', '-', tagger.name)}_{source[:8]}"
    paths = [folder / f"{stem}_seed{seed}.json" for seed in range(args.order_seeds)]
    if dist.rank() == 0:
        pairs = probe_order.karpathy_test(captions)
        for seed, path in enumerate(paths):
            if not path.is_file():
                probe_order.freeze(path, name, pairs, tagger, seed, source)
    dist.barrier()
    return probe_order.read_order(name, paths)
