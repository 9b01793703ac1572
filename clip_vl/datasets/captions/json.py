"""Captions in JSON: Karpathy's splits of COCO and Flickr in their published forms, COCO's official files, and
ImageNet-Captions. A row is an image with all its captions.

{"images": [{"filepath", "filename", "split", "sentences": [{"raw"}]}]}        Karpathy's own
[{"image", "caption": [str]}], or "caption": str and captions that follow      lists of later users
rows with "image", "filename" or "url", "caption" or "sentences", "split"      tables of hubs, also as JSON lines
{"images": [{"id", "file_name"}], "annotations": [{"image_id", "caption"}]}    COCO's official files
[{"filename", "wnid", "title", "tags", "description"}]                         ImageNet-Captions
"""

from pathlib import Path
from urllib.parse import urlsplit

from clip_vl.datasets.captions.csv import grouped
from clip_vl.datasets.captions.source import path_below
from clip_vl.datasets.captions.table import BLANK, NO_CAPTION, CaptionTable, LeftOut, Record, build_table
from clip_vl.datasets.storage.columns import TextColumn
from clip_vl.datasets.storage.file_digests import file_digest
from clip_vl.datasets.storage.json_stream import iterate_json_lines, iterate_json_list, iterate_json_members
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.text import id_of, whole_text

TRAIN_SPLITS = ("train", "restval")
TRIED = 8  # images that are looked for to find their folder


def open_caption_json(path, splits, options, cache_root, every=1):
    """The table of a JSON or JSON-lines file.

    splits: the splits to keep; None: the training ones, where entries name a split
    every:  keep the rows 0, every, 2 * every ...
    """
    path = Path(path)
    inputs = {"json": file_digest(path, cache_root), "name": path.stem, "splits": splits, "every": every}

    def records():
        return _every(grouped(_read(path, splits)), every)

    folder, digest = build_table(cache_root, _what(path, splits), inputs, records, options.max_left_out)
    images, strip = _find_images(path, TextColumn(folder, "path"), options)
    return CaptionTable(folder, digest, images, strip)


def _every(records, step):
    """The records 0, step, 2 * step ..., and what is left out."""
    number = 0
    for record in records:
        if isinstance(record, LeftOut):
            yield record
        else:
            if number % step == 0:
                yield record
            number += 1


def _what(path, splits):
    return f"{path} (splits {'+'.join(splits or TRAIN_SPLITS)})"


def _find_images(path, paths, options):
    """(folder, strip) of `CaptionTable`: --images_dir, or of what lies where data/README.md says the one with most of
    the first images.
    """
    near, root = path.parent, path.parent.parent
    folders = [Path(options.images_dir)] if options.images_dir else [
        near, near / "images", root / "mscoco", root / "flickr30k_images",
        *(Path(options.datasets_dir) / name for name in ("mscoco", "flickr30k_images", ".")),
    ]  # fmt: skip
    names = [paths[row] for row in range(min(TRIED, len(paths)))]
    places = [(folder, strip) for folder in folders for strip in (False, True)]
    found = [sum((folder / (name.partition("/")[2] if strip else name)).is_file() for name in names)
             for folder, strip in places]  # fmt: skip
    if any(found):
        return places[found.index(max(found))]
    tried = ", ".join(dict.fromkeys(map(str, folders)))
    raise UserError(
        f"the images of {path}, such as {names[0]}, are in none of {tried}; --images_dir names their folder"
    )


def _read(path, splits):
    """Records of any of the forms. Of the official one all names and captions are held, of the others one entry."""
    names, captions, lines, classes = {}, {}, {}, {}
    for line, member, entry in _entries(path):
        try:
            if member == "annotations":
                found, number = _caption(entry["caption"]), id_of(entry["image_id"])
                lines.setdefault(number, line)
                captions.setdefault(number, [])
                if found:
                    captions[number].append(found)
                else:
                    yield LeftOut(f"{path}:{line}", BLANK)
            elif member == "images" and "file_name" in entry:
                _add_name(names, entry, path.stem.removeprefix("captions_"))
            elif member in ("", "images") and _is_wanted(entry, splits):
                yield from _records(f"{path}:{line}", entry, classes)
        except KeyError as error:
            raise DataError(f"{path}:{line}: the entry has no {error}; is this a file of captions?") from None
        except (ValueError, TypeError) as error:
            raise DataError(f"{path}:{line}: {error}") from None
    for number, found in captions.items():
        if number not in names:
            yield LeftOut(f"{path}:{lines[number]}", "no image has their image_id", len(found))
    for number, name in names.items():
        found = captions.get(number)
        yield Record(name, found) if found else LeftOut(f"{path}: {name}", NO_CAPTION)


def _add_name(names, entry, folder):
    """names[id] = path of an image of COCO's official form. ValueError where another image has the id."""
    number, name = id_of(entry["id"]), path_below(".", f"{folder}/{entry['file_name']}")
    if names.setdefault(number, name) != name:
        raise ValueError(f"the id {number} of {entry['file_name']!r:.80} is the id of {names[number]!r:.80} already")


def _entries(path):
    """(line, key of the list, entry) of every entry; the key is "" where the file is a list or has an entry a line."""
    if path.suffix in (".jsonl", ".ndjson"):
        with path.open("rb") as file:
            yield from ((line, "", entry) for line, entry in iterate_json_lines(file, path))
    elif _first_character(path) == "{":
        yield from iterate_json_members(path)
    else:
        yield from ((line, "", entry) for line, entry in iterate_json_list(path))


def _first_character(path):
    with path.open("rb") as file:
        return file.read(4096).decode("utf-8-sig", errors="replace").lstrip()[:1]


def _is_wanted(entry, splits):
    if not isinstance(entry, dict):
        raise TypeError(f"an entry must be an object, not {entry!r:.60}")
    split = entry.get("split")
    if split is None and splits:
        raise ValueError(f"the entry names no split, but {'+'.join(splits)} was asked for: leave out the @")
    return split is None or split in (splits or TRAIN_SPLITS)


def _records(location, entry, classes):
    """The Record of an entry, and a LeftOut for its blank captions."""
    path, texts, label = _image_captions(entry, classes)
    captions = [text for text in map(_caption, texts) if text]
    if len(captions) < len(texts):
        yield LeftOut(location, BLANK, len(texts) - len(captions))
    if captions:
        yield Record(path_below(".", path), captions, label)
    elif not texts:
        yield LeftOut(location, NO_CAPTION)


def _image_captions(entry, classes):
    """(path, captions, class) of an entry."""
    if "wnid" in entry:
        label = classes.setdefault(entry["wnid"], len(classes))
        tags = entry.get("tags") or ()
        parts = (entry.get("title"), *([tags] if isinstance(tags, str) else tags), entry.get("description"))
        joined = " ".join(" ".join(str(part).split()) for part in parts if part)
        return f"{entry['wnid']}/{entry['filename']}", [joined], label
    found = next((entry[key] or [] for key in ("caption", "captions", "sentences") if key in entry), None)
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list):
        raise ValueError("the entry has no captions; 'caption', 'captions' or 'sentences' was expected")
    return _image(entry), [text["raw"] if isinstance(text, dict) else text for text in found], -1


def _image(entry):
    """The path of an entry's image: of an address, the file and the folder it is in."""
    if "filename" in entry:
        path = f"{entry['filepath']}/{entry['filename']}" if entry.get("filepath") else entry["filename"]
    elif "image" in entry:
        path = entry["image"]
    else:
        path = "/".join(urlsplit(entry["url"]).path.split("/")[-2:]).lstrip("/")
    if not isinstance(path, str):
        raise TypeError(f"the image must be a path, not {path!r:.60}")
    return path


def _caption(text):
    if not isinstance(text, str):
        raise ValueError(f"{text!r:.60} is no caption")
    return whole_text(text).strip()
