"""VL-CheckList (arXiv:2207.00221): objects, attributes and relations that are in an image against some that are not.

Files are lists of ["VG_100K/1.jpg", {"POS": ["small cup"], "NEG": ["large cup"]}]; of several paraphrases the first one
counts, and a text may stand there without a list. A YAML file per test says ANNO_PATH and IMG_ROOT; without any, names
and folders say what a file is about.
"""

import re
from pathlib import Path

from clip_vl.datasets.probes.items import Crop, Item, Probe, Row, expected_form, one_folder, read_bytes, text_of
from clip_vl.datasets.storage.json_stream import read_json
from clip_vl.engine.errors import DataError

CELLS = {
    "Object": ["Location/center", "Location/mid", "Location/margin", "Size/large", "Size/medium", "Size/small"],
    "Attribute": ["action", "color", "material", "size", "state"],
    "Relation": ["action", "spatial"],
}
SOURCES = ("vg", "vaw", "swig", "hake")
FOLDERS = ("{}", "vg/{}", "swig/{}", "hake/{}", "VG_100K_2/{}")
FIRST_CASES = 2000  # the default cap of the original: 1,000 pairs
PIECE = re.compile(r"_(?:first|last)?\d+(?:_\d+)?$")  # names of slices


def read_vlchecklist(folder, first_cases=FIRST_CASES):
    """Probes (ITC, ITM, ITC cleaned) of all annotation files below a folder.

    first_cases: the first that many cases of each file, half as many pairs, as the original has it; 0: all
    The cleaned one leaves out pairs with identical sides, repeated pairs, and negatives that lost their subject.
    """
    itc, itm, cleaned = (
        Probe(f"vlchecklist_{name}", kind, "wrong", [], [], FOLDERS)
        for name, kind in (("itc", "captions"), ("itm", "match"), ("cleaned", "captions"))
    )
    folders = set()
    for path, cell, source, root in _tests(Path(folder), itc.files):
        subset, seen, pairs = f"{cell}/{source}/{path.stem}", set(), _read(path, itc.files, root)
        folders |= {f"{root}/{{}}"} if root else set()
        itc.defects["empty files"] += not pairs
        for number, (image, positive, negative) in enumerate(pairs):
            wrong = defect_of(path.stem, image, positive, negative, seen)
            seen.add((image, positive, negative))
            if wrong:
                itc.defects[f"{subset}: {wrong}"] += 1
            within = not first_cases or number < first_cases // 2
            item = Item(f"{subset}/{number}", (subset,), (Crop(image),), (positive, negative))
            if within:
                itc.items.append(item)
                for gold, text in ((1, positive), (0, negative)):
                    itm.items.append(item._replace(id=f"{item.id}/{gold}", captions=(text,), gold=gold, fold=image))
                if not wrong:
                    cleaned.items.append(item)
    rows = _rows(dict.fromkeys(item.groups[0] for item in itc.items))
    for probe in (itc, itm, cleaned):
        probe.folders, probe.files = (*sorted(folders), *FOLDERS), itc.files
        probe.rows = [Row(label, "accuracy", groups, weights) for label, groups, weights in rows]
    kinds = [row for row in rows if row[0].split(" ")[0] in CELLS]
    itm.rows += [Row(label, metric, *of) for label, *of in kinds for metric in ("precision", "recall", "F1")]
    return itc, itm, cleaned


def defect_of(stem, image, positive, negative, seen):
    """What is wrong with a pair, or ""."""
    if positive.strip() == negative.strip():
        return "identical POS and NEG"
    if (image, positive, negative) in seen:
        return "repeated"
    if "obj" in stem and negative[:1].isspace():
        return "negative without subject and predicate"
    return ""


def _tests(folder, files):
    """(annotation file, cell such as "Object/Size/small", source, folder of images or "") of every test."""
    configurations = sorted([*folder.glob("**/*.yaml"), *folder.glob("**/*.yml")]) if folder.is_dir() else []
    for path in configurations:
        yield from _configured(path, folder, files)
    if not configurations:
        for path in one_folder(folder, "**/*.json", "VL-CheckList"):
            if path.name != "corpus.json":
                yield path, *_cell_of(path), ""


def _configured(path, folder, files):
    import yaml

    try:
        content = yaml.safe_load(read_bytes(path, files))
    except yaml.YAMLError as error:
        raise DataError(f"{path}: no YAML: {' '.join(str(error).split())}") from None
    with expected_form(path):
        entries = content if "ANNO_PATH" in content else next(iter(content.values()))
        if entries.get("TYPE", "TUPLE_JSON") != "TUPLE_JSON":
            raise ValueError(f"TYPE {entries['TYPE']!r:.40} is not TUPLE_JSON")
        annotation = text_of(entries, "ANNO_PATH")
        root = text_of(entries, "IMG_ROOT") if entries.get("IMG_ROOT") else ""
    there = [base / annotation for base in (folder, folder.parent, path.parent)]
    found = next((candidate for candidate in there if candidate.is_file()), None)
    if found is None or not any(found.resolve().is_relative_to(base.resolve()) for base in (folder, folder.parent)):
        raise DataError(f"{path}: ANNO_PATH {annotation!r:.80} is no file below {folder}")
    yield found, *_cell_of(found), Path(root).name if Path(root).name in ("vg", "swig", "hake") else ""


def _cell_of(path):
    """(cell, source) of a file by its path, such as Object/Size/vg_size/vg_obj_small.json, Relation/vg/action.json."""
    parts = path.parts
    stem = PIECE.sub("", path.stem)
    kind = next((part for part in parts if part in CELLS), None)
    below = parts[parts.index(kind) + 1 : -1] if kind else ()
    source = next((name for part in (*below, stem) for name in SOURCES if part.startswith(name)), None)
    cell = next((cell for cell in CELLS.get(kind, ()) if cell.rpartition("/")[2] == stem.rpartition("_")[2]
                 and (kind != "Object" or cell.partition("/")[0] in below)), None)  # fmt: skip
    if not (source and cell):
        raise DataError(f"{path} is not laid out as VL-CheckList, such as Attribute/vg/color.json")
    return f"{kind}/{cell}", source


def _read(path, files, root):
    read_bytes(path, files)
    content, pairs = read_json(path), []
    if not isinstance(content, list):
        raise DataError(f"{path} should hold a list, not a {type(content).__name__}")
    for number, entry in enumerate(content):
        with expected_form(f"{path}: entry {number}"):
            image, texts = entry
            sides = [_first(texts, side) for side in ("POS", "NEG")]
            pairs.append((text_of({"image": image}, "image"), *sides))
    return pairs


def _first(texts, side):
    """The text of a side, or the first of its list of paraphrases."""
    return text_of(texts, side) if isinstance(texts[side], str) else text_of({side: texts[side][0]}, side)


def _rows(subsets):
    """(label, groups, weights): files, cells (mean over files of a source, then over sources), kinds (over cells)."""
    rows, by_cell = [(subset, (subset,), None) for subset in subsets], {}
    for subset in subsets:
        cell, source, _ = subset.rsplit("/", 2)
        by_cell.setdefault(cell, {}).setdefault(source, []).append(subset)
    weights = {
        cell: {s: 1 / len(sources) / len(files) for files in sources.values() for s in files}
        for cell, sources in by_cell.items()
    }
    rows += [(cell, tuple(of), tuple(of.values())) for cell, of in weights.items()]
    for kind in CELLS:
        cells = [cell for cell in weights if cell.startswith(kind + "/")]
        of = {subset: weight / len(cells) for cell in cells for subset, weight in weights[cell].items()}
        if cells:
            rows.append((f"{kind} ({len(cells)} of {len(CELLS[kind])} cells)", tuple(of), tuple(of.values())))
    return rows
