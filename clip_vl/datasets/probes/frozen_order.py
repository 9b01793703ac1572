"""COCO-Order and Flickr30k-Order by name: their shufflings are made once and kept in files."""

import re

from clip_vl.datasets.negatives.tagger import load_tagger
from clip_vl.datasets.probes.order import digest_of, freeze, karpathy_test, read_order
from clip_vl.engine import dist
from clip_vl.engine.errors import UserError


def frozen_order(name, captions, folder, seeds, tagger="auto"):
    """The Probe of the shufflings kept in a folder; missing ones are made from `captions`, a file of Karpathy's test
    captions. Without that file, whatever is kept is read.
    """
    if seeds < 1:
        raise UserError(f"--order_seeds {seeds} must be at least 1")
    if not captions.is_file():
        paths = sorted(folder.glob(f"{name}_*_seed*.json"))
        if not paths:
            raise UserError(f"neither {captions} nor frozen shufflings in {folder} are there; see data/README.md")
        return read_order(name, paths)
    tagger, source = load_tagger(tagger), digest_of(captions)
    stem = f"{name}_{re.sub(r'[^A-Za-z0-9.]+', '-', tagger.name)}_{source[:8]}"
    paths = [folder / f"{stem}_seed{seed}.json" for seed in range(seeds)]
    if dist.rank() == 0:
        pairs = karpathy_test(captions)
        for seed, path in enumerate(paths):
            if not path.is_file():
                freeze(path, name, pairs, tagger, seed, source)
    dist.barrier()
    return read_order(name, paths)
