"""Claims: images are read faster per core than Pillow reads them, from files (aim: 2.5x) and from an LMDB (aim: 4x),
and training on the built-in set waits for data in less than 5 % of its time.

    taskset -c 0 .venv/bin/python benchmarks/loader.py --images FOLDER               one core, a minute
    taskset -c 0,1 .venv/bin/python benchmarks/loader.py --data_root data/shapes     after the quickstart

FOLDER holds JPEG photographs. The readers take turns; the figures are medians over rounds.
pillow     decodes at full size and resizes (short side 384, long side at most 640): uint8
files      the same by clip_vl, from the files
lmdb       the same by clip_vl, from an LMDB of resized JPEGs
published  what CLIP-ViL's loader does for an image: Pillow, then float32, zero padding to 384x640, normalisation
batch      what clip_vl's loader does for it: from the files onto the canvas, uint8; the device normalises
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from needs import require, require_shapes
from PIL import Image

FIRST = 5  # batches that are not timed: workers start and memory is allocated
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from clip_vl.datasets.images.canvas import canvas_size, image_box, place_on_canvas, resized_size  # noqa: E402
from clip_vl.datasets.images.image_folders import ImageFolders  # noqa: E402
from clip_vl.datasets.images.image_lmdb import ImageLMDB  # noqa: E402
from clip_vl.datasets.images.image_lmdb_writer import write_images  # noqa: E402
from clip_vl.models.clip.statistics import CLIP_MEAN, CLIP_STD  # noqa: E402

MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))


def read_with_pillow(path):
    with Image.open(path) as picture:
        picture = picture.convert("RGB")
        height, width = resized_size(picture.height, picture.width)
        return torch.from_numpy(np.array(picture.resize((width, height), Image.BILINEAR)))


def read_as_published(path):
    picture = read_with_pillow(path).permute(2, 0, 1)
    size = tuple(picture.shape[1:])
    canvas = canvas_size(*size)
    top, left, height, width = image_box(size, canvas)
    padded = torch.zeros(3, *canvas)
    padded[:, top : top + height, left : left + width] = (picture / 255)[:, :height, :width]
    return (padded - MEAN) / STD


def read_for_batch(source, name):
    picture = source.load(name)
    return place_on_canvas([picture], canvas_size(*picture.shape[1:]))


def compare_readers(folder, rounds):
    photographs = sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in (".jpg", ".jpeg"))
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        images = root / "vg_raw_images" / "VG_100K"
        images.mkdir(parents=True)
        files = [images / f"{number}.jpg" for number in range(len(photographs))]
        for photograph, file in zip(photographs, files):
            file.write_bytes(photograph.read_bytes())
        write_images(root / "images.lmdb", files)
        source, store = ImageFolders(root), ImageLMDB(root / "images.lmdb")
        readers = {
            "pillow": read_with_pillow,
            "files": lambda file: source.load(file.stem),
            "lmdb": lambda file: store.load(file.stem),
            "published": read_as_published,
            "batch": lambda file: read_for_batch(source, file.stem),
        }
        rates = {name: [] for name in readers}
        for number in range(rounds + 1):  # the first round warms up
            for name, read in readers.items():
                start = time.perf_counter()
                for file in files:
                    read(file)
                if number:
                    rates[name].append(len(files) / (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{len(files)} photographs, {rounds} rounds, one thread")
    for name, rate in median.items():
        base = "published" if name == "batch" else "pillow"
        print(f"{name:9s} {rate:6.0f} images/s   {rate / median[base]:.2f}x {base}")


def measure_waiting(data_root, workers):
    """Share of the time of a pre-training epoch (the quickstart's flags) that the loop spends waiting for batches."""
    from clip_vl import pretrain
    from clip_vl.datasets import loader as loaders
    from clip_vl.flags.parser import parse

    build, waited, arrived = loaders.build_loader, [], []

    def timed(dataset, *args):
        def batches():
            iterator = iter(build(dataset, *args))
            while True:
                start = time.perf_counter()
                batch = next(iterator, None)
                if batch is None:
                    return
                arrived.append(time.perf_counter())
                waited.append(arrived[-1] - start)
                yield batch

        return batches()

    loaders.build_loader = timed
    with tempfile.TemporaryDirectory() as output:
        flags = f"""--output {output}/run --data_root {data_root} --random_init --clip_model_name RN-tiny --llayers 2
            --visualbert_style --input_raw_images --use_positional_embedding --taskMaskLM --taskMatched --epochs 1
            --image_size_min 96 --image_size_max 128 --batchSize 128 --sentences_per_image 4 --max_train_samples 10000
            --limit_source vqa,gqa,visual7w --valid= --report_step 1000 --num_workers {workers}"""
        args = parse(pretrain.PretrainFlags, pretrain.__doc__, flags.split())
        pretrain.main(args)
    total = arrived[-1] - arrived[FIRST]
    share = 100 * sum(waited[FIRST + 1 :]) / total
    print(f"{workers} workers: {len(waited)} batches, {share:.1f} % of the time spent waiting for data")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", help="folder of JPEG photographs")
    parser.add_argument("--data_root", help="folder of the built-in dataset")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if not (args.images or args.data_root):
        parser.error("pass --images with a folder of JPEG photographs, --data_root with the built-in dataset, or both")
    if args.images and require(args.images, "pass --images with a folder of JPEG photographs"):
        torch.set_num_threads(1)
        compare_readers(args.images, args.rounds)
    if args.data_root and require_shapes(args.data_root):
        for workers in (0, 1):
            measure_waiting(args.data_root, workers)


if __name__ == "__main__":
    main()
