"""Names of classes, and what benchmarks call a dataset and which metric they report."""

import re
from pathlib import Path

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.engine.readers.text import read_text, split_lines, whole_text

# Names of ELEVATER, torchvision and folders, in lower-case letters and digits -> CLIP_benchmark's.
KEYS = {
    "caltech101": "caltech101", "cifar10": "cifar10", "cifar100": "cifar100", "country211": "country211", "dtd": "dtd",
    "eurosat": "eurosat", "eurosatclip": "eurosat", "fer2013": "fer2013", "fgvcaircraft": "fgvc_aircraft",
    "fgvcaircraft2013bvariants102": "fgvc_aircraft", "flowers": "flowers", "flowers102": "flowers",
    "oxfordflower102": "flowers", "food101": "food101", "gtsrb": "gtsrb", "imagenet": "imagenet1k",
    "imagenet1k": "imagenet1k", "kittidistance": "kitti_closest_vehicle_distance", "mnist": "mnist",
    "oxfordiiitpet": "pets", "oxfordiiitpets": "pets", "patchcamelyon": "pcam", "pcam": "pcam", "pets": "pets",
    "renderedsst2": "renderedsst2", "resisc45": "resisc45", "resisc45clip": "resisc45", "stanfordcars": "cars",
    "cars": "cars", "stl10": "stl10", "sun397": "sun397", "svhn": "svhn",
    "voc2007classification": "voc2007_multilabel",
}  # fmt: skip
# By mean per class in CLIP (arXiv:2103.00020, table 9) and ELEVATER (arXiv:2204.08790, table 2).
METRICS = {
    "caltech101": "mean_per_class", "fgvc_aircraft": "mean_per_class", "flowers": "mean_per_class",
    "pets": "mean_per_class", "voc2007_multilabel": "mAP11", "hatefulmemes": "auc",
}  # fmt: skip
SQUASHED = ("kitti_closest_vehicle_distance",)  # ELEVATER resizes these to the square, without a crop


def benchmark_key(name):
    """CLIP_benchmark's name of a data set, or the name in lower-case letters and digits."""
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    return KEYS.get(plain, plain)


def metric_of(key):
    return METRICS.get(key, "accuracy")


def read_list(path, key, what):
    """A list of str from JSON (a list, or an object of lists, of which that of `key`) or a text file with lines.

    Blank lines of a text file are passed over; JSON may hold an empty name, as CLIP_benchmark's list for
    clevr_closest_object_distance does between "near" and "distant".
    """
    path = Path(path)
    try:
        text = read_text(path)
        value = parse_json(text) if path.suffix == ".json" else [line for line in split_lines(text) if line.strip()]
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    if isinstance(value, dict):
        if key not in value:
            known = ", ".join(sorted(map(str, value)))
            raise UserError(f"{path} has no {what} of {key!r}: choose one with --benchmark_key, of {known}")
        value, path = value[key], f"{path}, {key}"
    if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
        raise DataError(f"{path}: a list of {what} was expected")
    try:
        return [whole_text(item).strip() for item in value]
    except ValueError as error:
        raise DataError(f"{path}: {error}") from None


def named(names, path, key, title):
    """The class names of a file, instead of a dataset's own `names`. Raises DataError where their number differs."""
    found = read_list(path, key, "class names")
    if len(found) != len(names):
        raise DataError(f"{path} has {len(found)} names for the {len(names)} classes of {title}")
    plain = [[re.sub(r"[^a-z0-9]", "", name.lower()) for name in each] for each in (names, found)]
    if sorted(plain[0]) == sorted(plain[1]) and plain[0] != plain[1]:
        wrong = next(i for i, pair in enumerate(zip(*plain)) if len(set(pair)) == 2)
        raise DataError(f"{path} has the names of {title} in another order: class {wrong} is {names[wrong]!r} there "
                        f"and {found[wrong]!r} here")  # fmt: skip
    return found
