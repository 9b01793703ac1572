"""The probes by name: where their annotations and images are below --datasets_dir, and what reads them."""

from dataclasses import dataclass
from pathlib import Path

from clip_vl.engine.errors import UserError

PATHS = {  # name -> (annotations, images), both below --datasets_dir
    "winoground": ("probes/winoground", "probes/winoground"),
    "crepe_productivity": ("probes/crepe_productivity", "vg_raw_images"),
    "crepe_systematicity": ("probes/crepe_systematicity", "vg_raw_images"),
    "sugarcrepe": ("probes/sugarcrepe", "mscoco"),
    "vg_relation": ("probes/aro", "vg_raw_images"),
    "vg_attribution": ("probes/aro", "vg_raw_images"),
    "coco_order": ("probes/coco_karpathy_test.json", "mscoco"),
    "flickr30k_order": ("probes/flickr30k_test.json", "flickr30k_images"),
    "svo": ("probes/svo", "probes/svo/images"),
    "vlchecklist": ("probes/vlchecklist", "probes/vlchecklist"),
    "nlvr": ("nlvr", "nlvr_raw_images"),
    "scenes": ("shapes_pairs", "shapes_pairs"),
    "scene_twins": ("shapes_twins", "shapes_twins"),
}


@dataclass(frozen=True)
class ProbeOptions:
    """Where probes are, and how some of them are read.

    annotations: folder or file, or folder of folders named by probes;  images_dir: folder of the images
    first_cases: of each file of VL-CheckList, 0 for all
    order_seeds, tagger: of the shufflings of COCO-Order and Flickr30k-Order
    fetch_images: whether missing images of svo are downloaded
    """

    datasets_dir: str = "data"
    annotations: str | None = None
    images_dir: str | None = None
    first_cases: int = 2000
    order_seeds: int = 5
    tagger: str = "auto"
    fetch_images: bool = False


def open_probes(names, options):
    """[(Probe, folder of its images)] of the probes with these names. Raises UserError for what is not there."""
    if not names:
        raise UserError(f"--probes names what to run: {', '.join(PATHS)}")
    found = []
    for name in dict.fromkeys(names):
        if name not in PATHS:
            raise UserError(f"--probes {name} is not one of {', '.join(PATHS)}")
        path, images = PATHS[name]
        path = Path(options.annotations) if options.annotations else Path(options.datasets_dir, path)
        path = path / name if options.annotations and (path / name).exists() else path
        images = Path(options.images_dir or Path(options.datasets_dir, images))
        for probe in _read(name, path, images, options):
            probe.name = name if name == "scene_twins" else probe.name
            found.append((probe, images))
    return found


def _read(name, path, images, options):
    """[Probe] of a name; the reader is imported here, so that a probe needs no other's."""
    match name:
        case "winoground" | "scene_twins":
            from clip_vl.datasets.probes.winoground import read_winoground

            return [read_winoground(path)]
        case "crepe_productivity" | "crepe_systematicity":
            from clip_vl.datasets.probes.crepe import read_productivity, read_systematicity

            return [read_productivity(path) if name == "crepe_productivity" else read_systematicity(path)]
        case "sugarcrepe":
            from clip_vl.datasets.probes.sugarcrepe import read_sugarcrepe

            return [read_sugarcrepe(path)]
        case "vg_relation" | "vg_attribution":
            from clip_vl.datasets.probes.aro import read_attribution, read_relation

            return [read_relation(path) if name == "vg_relation" else read_attribution(path)]
        case "coco_order" | "flickr30k_order":
            from clip_vl.datasets.probes.frozen_order import frozen_order

            folder = Path(options.datasets_dir, "probes", "frozen")
            return [frozen_order(name, path, folder, options.order_seeds, options.tagger)]
        case "svo":
            from clip_vl.datasets.probes.svo import fetch_svo, read_svo

            if options.fetch_images:
                fetch_svo(path, images)
            return read_svo(path)
        case "vlchecklist":
            from clip_vl.datasets.probes.vlchecklist import read_vlchecklist

            return read_vlchecklist(path, options.first_cases)
        case "nlvr":
            from clip_vl.datasets.probes.nlvr import read_nlvr

            return [read_nlvr(path)]
        case "scenes":
            from clip_vl.datasets.probes.scenes import read_scenes

            return [read_scenes(path)]
