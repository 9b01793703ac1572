"""ARO's COCO-Order and Flickr30k-Order (arXiv:2210.01936): a caption among four shufflings of its own words.

Shufflings depend on a tagger, a tokenizer and a seed, so they are frozen to a file: two models are comparable when
their results name the same digest. A shuffling that leaves the cleaned caption as it was is drawn again, and left out
if it stays so. File: {"version", "probe", "tagger", "seed", "source", "counts", "items": [{"id", "image", "options"}]},
the true option first.
"""

import hashlib
import json
import re
from collections import Counter
from pathlib import Path

from clip_vl.datasets.probes.items import Crop, Item, Probe, Row, expected_form, read_bytes, text_of
from clip_vl.datasets.storage.json_stream import read_json
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.files import atomic_write
from clip_vl.engine.random import numpy_rng

VERSION = 1
NAMES = ("nouns and adjectives", "all but nouns and adjectives", "within trigrams", "trigrams")
ALL_WORDS = "all words"  # of perturbed retrieval alone
NOUNS, ADJECTIVES = {"NN", "NNS", "NNP", "NNPS"}, {"JJ", "JJR", "JJS"}
TRIES = 10
MOST_WORDS = 30
SIGNS = str.maketrans(dict.fromkeys('.!"()*#:;~', " "))
# Treebank words: signs stand alone, hyphens and points inside stay, clitics are split off.
WORD = re.compile(r"\w+(?=n't\b)|n't\b|'(?:s|re|ve|ll|d|m)\b|\w+(?:[-./]\w+)*|\.\.\.|[^\w\s]", re.IGNORECASE)
FOLDERS = ("{}", "mscoco/{}", "flickr30k-images/{}", "val2014/{}")


def clean(caption):
    """How all five options are read: lower case, ten signs become spaces, spaces collapse, 30 words."""
    return " ".join(caption.lower().translate(SIGNS).split()[:MOST_WORDS])


def shuffled(caption, parse, name, rng):
    """One shuffling of a raw caption, not yet cleaned, its tokens joined by single spaces.

    name: of NAMES, or ALL_WORDS;  parse: a tagger's, for the first two;  rng: NumPy generator
    """
    if name == ALL_WORDS:
        return " ".join(_permuted(caption.split(), rng))
    if name == "within trigrams":
        return " ".join(word for part in _trigrams(caption) for word in _permuted(part, rng))
    if name == "trigrams":
        return " ".join(word for part in _permuted(_trigrams(caption), rng) for word in part)
    words, tags = [token.text for token in parse.tokens], [token.tag for token in parse.tokens]
    if name == "nouns and adjectives":
        slots = [[i for i, tag in enumerate(tags) if tag in kind] for kind in (NOUNS, ADJECTIVES)]
    else:
        slots = [[i for i, tag in enumerate(tags) if tag not in NOUNS | ADJECTIVES]]
    result = list(words)
    for positions in slots:
        for position, source in zip(positions, _permuted(positions, rng)):
            result[position] = words[source]
    return " ".join(result)


def _trigrams(caption):
    words = WORD.findall(caption)
    return [words[start : start + 3] for start in range(0, len(words), 3)]


def _permuted(things, rng):
    return [things[i] for i in rng.permutation(len(things))]


def options_of(caption, tagger, seed, number, counts):
    """[cleaned caption, its shufflings that differ from it]; what was drawn again or left out is counted."""
    parse, options = tagger(caption), [clean(caption)]
    for kind, name in enumerate(NAMES):
        for attempt in range(TRIES):
            option = clean(shuffled(caption, parse, name, numpy_rng(seed, "order", number, kind, attempt)))
            if option != options[0]:
                options.append(option)
                break
            counts[f"{name}: drawn again"] += attempt == 0
        else:
            counts[f"{name}: left out, no other order was found"] += 1
    return options


def freeze(path, name, captions, tagger, seed, source):
    """Write the shufflings of [(image, caption)] to `path`; source: sha256 of the caption file."""
    counts, items = Counter(), []
    for number, (image, caption) in enumerate(captions):
        counts["captions of more than 30 words, cut after shuffling"] += len(caption.split()) > MOST_WORDS
        items.append({"id": number, "image": image, "options": options_of(caption, tagger, seed, number, counts)})
    content = {"version": VERSION, "probe": name, "tagger": tagger.name, "seed": seed, "source": source,
               "counts": counts, "items": items}  # fmt: skip
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(content, ensure_ascii=False, indent=0).encode())


def karpathy_test(path):
    """[(image, caption)] of a list [{"image", "caption": [...]}] or of the test split of a file of Karpathy's form."""
    content, pairs = read_json(path), []
    with expected_form(path):
        if isinstance(content, dict):
            for image in content["images"]:
                if image["split"] == "test":
                    name = "/".join(filter(None, [image.get("filepath"), text_of(image, "filename")]))
                    pairs += [(name, text_of(sentence, "raw")) for sentence in image["sentences"]]
        else:
            for entry in content:
                captions = entry["caption"] if isinstance(entry["caption"], list) else [entry["caption"]]
                pairs += [(text_of(entry, "image"), text_of({"caption": c}, "caption")) for c in captions]
    if not pairs:
        raise DataError(f"{path} has no captions of a test split")
    return pairs


def read_order(name, paths):
    """The Probe of frozen files of one tagger and different seeds: precision@1 of each, and the mean over seeds."""
    probe = Probe(name, "captions", "right", [], [], FOLDERS)
    made_by = set()
    for path in paths:
        read_bytes(path, probe.files)
        content = read_json(path)
        with expected_form(path):
            if content["version"] != VERSION or content["probe"] != name:
                raise DataError(f"{path} holds {content['probe']!r:.40}, version {content['version']}; "
                                f"{name}, version {VERSION} is wanted")  # fmt: skip
            made_by.add((text_of(content, "tagger"), content["source"]))
            subset = f"seed {int(content['seed'])}"
            for entry in content["items"]:
                if not isinstance(entry["options"], list):
                    raise ValueError(f"options {entry['options']!r:.60} is no list")
                options = tuple(text_of({"option": option}, "option") for option in entry["options"])
                item = Item(f"{subset}/{int(entry['id'])}", (subset,), (Crop(text_of(entry, "image")),), options)
                if len(options) < 2:
                    probe.defects[f"{subset}: no shuffling at all, excluded"] += 1
                    continue
                probe.items.append(item)
            probe.defects.update({f"{subset}: {defect}": int(count) for defect, count in content["counts"].items()})
    if len(made_by) > 1:
        raise UserError(f"the frozen files of {name} are of different taggers or captions; one table needs one of each")
    probe.facts["tagger"] = made_by.pop()[0]
    if not probe.items:
        raise DataError(f"{path} holds no caption with a shuffling")
    subsets = tuple(dict.fromkeys(item.groups[0] for item in probe.items))
    probe.rows = [Row(subset, "precision@1", (subset,)) for subset in subsets]
    probe.rows += [Row("mean over seeds", "precision@1", subsets, (1 / len(subsets),) * len(subsets))]
    return probe


def digest_of(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
