"""Untrusted input: damaged images and annotations, hostile files. Rows of benchmarks/faults.py."""

import io
import json
import os
import pickle
import re
import resource
import shutil
import struct
import subprocess
import zipfile
import zlib

import h5py
import lmdb
import lz4.frame
import msgpack
import torch
from fault_check import Broken, check
from PIL import Image

from clip_vl.datasets.features.regions import open_regions
from clip_vl.datasets.features.store import open_features, write_features
from clip_vl.datasets.images.collections import COCO_VG, NLVR2, digest_list_path, relative_path
from clip_vl.datasets.images.decoding import DamagedImage, decode_image
from clip_vl.datasets.images.digest_list import record_digests
from clip_vl.datasets.images.image_folders import ImageFolders
from clip_vl.datasets.images.inventory import list_collection
from clip_vl.datasets.lxmert.annotations import build_pretrain_annotations, build_vqa_annotations
from clip_vl.datasets.lxmert.answers import AnswerTable
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.datasets.official.nlvr import convert_nlvr
from clip_vl.datasets.storage.json_stream import iterate_json_list
from clip_vl.engine.checkpoint import read_checkpoint
from clip_vl.engine.errors import ProgramError
from clip_vl.models.loading.state_dicts import read_state_dict

MEMORY = 384 * 2**20  # bytes by which hostile files may raise the highest use


# ---- images


def damaged_images(count, data_root, folder, rng):
    """Flipped bits, cuts, zeros, foreign bytes, other pictures, bombs: a DamagedImage that names the file.

    That is with recorded digests; without them it is a picture or a DamagedImage, and never anything else.
    """
    root = folder / "data"
    files, sources = [], {}
    for collection in (COCO_VG, NLVR2):
        names = list_collection(data_root, collection)[0][:40]
        for name in names:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(data_root / name, root / name)
        record_digests(digest_list_path(root, collection), root, names)
        sources[collection.name] = ImageFolders(root, collection)
        files += [(root / name, sources[collection.name]) for name in names]
    originals = {path: path.read_bytes() for path, _ in files}
    silent = 0
    for number in range(count):
        path, source = rng.choice(files)
        data = mutated_image(number, originals, path, rng)
        path.write_bytes(data)
        try:
            source.load(path.stem)
            raise Broken(f"mutation {number} of {path.name} was read")
        except DamagedImage as error:
            check(str(path) in str(error) and "\n" not in str(error), f"unclear: {error}")
        try:
            picture = decode_image(data, path)
            check(picture.dtype == torch.uint8 and picture.shape[0] == 3, f"{picture.dtype} {picture.shape}")
            silent += not torch.equal(picture, decode_image(originals[path]))
        except DamagedImage as error:
            check(str(path) in str(error) and "\n" not in str(error), f"unclear: {error}")
        path.write_bytes(originals[path])
    return f"all noticed by their digests; without these {silent} would be another picture"


def mutated_image(number, originals, path, rng):
    original = data = originals[path]
    while data == original:
        data, place, kind = bytearray(original), rng.randrange(len(original)), number % 6
        if kind == 0:
            del data[place:]
        elif kind == 1:
            data[place : place + 32] = rng.randbytes(32)
        elif kind == 2:
            data[place : place + 64] = bytes(len(data[place : place + 64]))
        elif kind == 3 and number % 4 == 3:
            data = image_bomb(rng)
        elif kind == 3:
            data = originals[rng.choice(list(originals))]
        else:
            for _ in range(rng.randint(1, 20)):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        data = bytes(data)
    return data


def image_bomb(rng):
    """A file of some hundred bytes whose header promises gigabytes."""
    side = rng.choice((20_000, 65_500))
    if rng.random() < 0.5:
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
            for kind, body in chunks
        )
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG")
    data = bytearray(buffer.getvalue())
    frame = data.index(b"\xff\xc0")  # length (2), precision (1), height (2), width (2)
    data[frame + 5 : frame + 9] = struct.pack(">HH", side, side)
    return bytes(data)


# ---- annotations

FIX = re.compile(
    r"must|expected|missing|needs|not valid|cut short|Expecting|save the file|passes|name files of|remove it from"
)


def damaged_annotations(count, data_root, folder, rng):
    """Broken text and wrong values in VQA and pre-training files: refused with file, line and what is expected.

    With skip_bad a wrong value is left out and counted.
    """
    folder.mkdir()
    common = {
        "tokenizer": load_tokenizer(data_root / "bert-base-uncased"),
        "image_sizes": data_root / "mscoco" / "width_heigths.json",
        "cache_root": folder / "cache",
    }
    answers = json.loads((data_root / "vqa" / "trainval_label2ans.json").read_text())
    table = AnswerTable(data_root / "lxmert" / "all_ans.json")
    kinds = {
        "vqa/minival.json": lambda path, **more: build_vqa_annotations([path], answers=answers, **common, **more),
        "lxmert/mscoco_minival.json": lambda path, **more: build_pretrain_annotations(
            [path], answer_table=table, **common, **more
        ),
    }
    read = 0
    for number in range(count):
        name = list(kinds)[number % 2]
        rows = json.loads((data_root / name).read_text())[:20]
        place, path = rng.randrange(len(rows)), folder / name.replace("/", "_")
        is_value = number % 4 > 1
        lines = [json.dumps(wrong_value(row, rng) if is_value and i == place else row) for i, row in enumerate(rows)]
        if not is_value:
            lines[place] = broken_text(lines[place], rng)
        path.write_text("[\n" + ",\n".join(lines) + "\n]\n", encoding="utf-8", errors="surrogatepass")
        try:
            kinds[name](path)
            check(not is_value, f"{lines[place]:.200} was read")
            read += 1
        except ProgramError as error:
            found = re.match(rf"{re.escape(str(path))}:(\d+): ", str(error))
            check(found and "\n" not in str(error), f"no file:line: {error}")
            check(int(found[1]) - (place + 2) in ((0,) if is_value else (0, 1)), f"line {place + 2}: {error}")
            check(FIX.search(str(error)), f"no way out: {error}")
        if is_value and number % 8 == 2:
            meta = kinds[name](path, skip_bad=True).meta
            check(meta["skipped"] == 1, f"{meta['skipped']} skipped")
            check(f"{path.name}:{place + 2}: " in meta["skipped_examples"][0], f"{meta['skipped_examples']}")
    return f"{read} were still of the right form"


def broken_text(line, rng):
    place = rng.randrange(len(line))
    kind = rng.choice(("delete", "insert", "flip"))
    if kind == "flip":
        return line[:place] + chr(ord(line[place]) ^ 1 << rng.randrange(6)).replace("\n", "\r") + line[place + 1 :]
    insert = rng.choice(("\x00", "}", '"', "[", "null", "NaN", "\\", "\ud800", "[" * 5000)) if kind == "insert" else ""
    return line[:place] + insert + line[place + rng.randrange(12) :]


def wrong_value(row, rng):
    """A row with a key gone or a value that cannot be."""
    row = json.loads(json.dumps(row))
    wrong = [None, 3, [], {"a": []}, "../../etc/passwd", "/etc/passwd", "a\0b", "x" * 300, "", True]
    if "sentf" not in row:
        key = rng.choice(("img_id", "sent", "label", "question_id"))
        if rng.random() < 0.3 and key != "label":
            del row[key]
        else:
            kinds = {"img_id": lambda v: v, "sent": lambda v: not isinstance(v, str), "label": lambda v: v != {},
                     "question_id": lambda v: not isinstance(v, str) and v != 3}  # fmt: skip
            row[key] = rng.choice([v for v in wrong if key == "img_id" or kinds[key](v)])
        return row
    category = rng.choice(list(row["sentf"]))
    change = rng.randrange(5)
    if change == 0:
        del row[rng.choice(("img_id", "sentf", "labelf"))]
    elif change == 1:
        row["img_id"] = rng.choice(wrong)
    elif change == 2:
        row["sentf"][category] = rng.choice((None, 3, {}, "text", True))
    elif change == 3:
        row["sentf"][category][0] = rng.choice((None, 3, {}, [], True, "half \ud800"))
    else:
        row["labelf"][category] = [{"yes": rng.choice((2, -1, "1", None, True))}] * len(row["sentf"][category])
    return row


# ---- hostile files


class Call:
    """Pickles as a call."""

    def __init__(self, function, arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def hostile_files(count, folder, rng):
    """Checkpoints, archives, stores, annotations and names made to run code, leave their folder or fill the memory.

    Each is refused in one sentence that names it; nothing has run, nothing lies outside, memory stayed bounded. URLs
    are missing: nothing here opens one.
    """
    folder.mkdir()
    inside, bait = folder / "inside", folder / "ran"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    makers = [torch_pickle, torch_pickle, torchscript, weights_header, zip_bomb, manifest, nlvr_archive, nlvr_archive,
              image_name, feature_value, hdf5_store, region_line, annotation_text, picture]  # fmt: skip
    for number in range(count):
        make = makers[number % len(makers)]
        inside.mkdir()
        named, attack = make(inside, bait, rng)
        try:
            attack()
            raise Broken(f"{make.__name__}: {named} was read")
        except ProgramError as error:
            check(named in str(error) and "\n" not in str(error), f"{make.__name__}: unclear: {error}")
            check(len(str(error)) < 1000, f"{make.__name__}: {len(str(error))} characters")
        check(not bait.exists(), f"{make.__name__} ran")
        check([path.name for path in folder.iterdir()] == ["inside"], f"{make.__name__} left its folder")
        shutil.rmtree(inside)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    check(grown < MEMORY, f"memory grew by {grown / 2**20:.0f} MiB")
    return f"memory grew by {grown / 2**20:.0f} MiB"


def code(bait, rng):
    """A pickle that makes the bait."""
    calls = [(os.system, (f"touch {bait}",)), (eval, (f"open({str(bait)!r}, 'w')",)), (os.mkdir, (str(bait),)),
             (subprocess.check_output, (["touch", str(bait)],)), (exec, (f"open({str(bait)!r}, 'w')",))]  # fmt: skip
    return pickle.dumps({"model": {"w": Call(*rng.choice(calls))}}, protocol=rng.randint(2, 5))


def zipped(path, entries, compression=zipfile.ZIP_STORED):
    """A number in the place of content stands for as many MiB of spaces."""
    with zipfile.ZipFile(path, "w", compression, compresslevel=1) as archive:
        for name, content in entries.items():
            with archive.open(name, "w") as member:
                for part in [b" " * 2**20] * content if isinstance(content, int) else [content]:
                    member.write(part)


def torch_pickle(folder, bait, rng):
    path = folder / "weights.pth"
    if rng.random() < 0.5:
        path.write_bytes(code(bait, rng))
    else:
        zipped(path, {"archive/data.pkl": code(bait, rng), "archive/version": b"3"})
    return path.name, lambda: read_state_dict(path)


def torchscript(folder, bait, rng):
    path = folder / "clip.pt"
    zipped(path, {"clip/data.pkl": code(bait, rng), "clip/constants.pkl": code(bait, rng), "clip/version": b"3"})
    return path.name, lambda: read_state_dict(path)


def weights_header(folder, bait, rng):
    """safetensors: a header or a tensor of petabytes, or one that never ends."""
    path, huge = folder / "model.safetensors", 2 ** rng.randint(40, 62)
    header = json.dumps({"w": {"dtype": "F32", "shape": [huge // 4], "data_offsets": [0, huge]}}).encode()
    path.write_bytes(rng.choice((struct.pack("<Q", huge) + header, struct.pack("<Q", len(header)) + header,
                                 struct.pack("<Q", 100_000) + b'{"a":' * 20_000)))  # fmt: skip
    return path.name, lambda: read_state_dict(path)


def zip_bomb(folder, bait, rng):
    path = folder / "bomb.pt"
    zipped(path, {"m/data.pkl": b"\x80\x02}.", "m/data/0": 500}, zipfile.ZIP_DEFLATED)
    return path.name, lambda: read_state_dict(path)


def manifest(folder, bait, rng):
    """A checkpoint of this repository that lists files elsewhere."""
    name = rng.choice(("../outside.safetensors", "/etc/passwd", "a/../../b.json", "x" * 300 + "/y.json"))
    listed = {
        "format": 1,
        "files": {"state.json": {"size": 2, "sha256": "0" * 64}, name: {"size": 1, "sha256": "0" * 64}},
    }
    (folder / "MANIFEST.json").write_text(json.dumps(listed))
    (folder / "state.json").write_text("{}")
    return str(folder), lambda: read_checkpoint(folder)


def nlvr_archive(folder, bait, rng):
    """NLVR v1: names that lead out, members that unpack to gigabytes, JSON that nests without end."""
    path, kind = folder / "nlvr_dev.zip", rng.randrange(5)
    row = {"identifier": "1-0", "directory": "1", "label": "true", "sentence": "a circle"}
    if kind == 0:
        row["identifier"] = rng.choice(("../../../ran", "/ran", "1-0/../../../../ran", "1-0\0", "1-0\n"))
    elif kind == 1:
        row["directory"] = rng.choice(("../..", "/", "1/../../..", "1\0"))
    lines = json.dumps(row) if kind != 2 else '{"identifier": ' + "[" * 200_000
    entries = {"nlvr/dev/dev.json": 500 if kind == 3 else lines.encode(), "../ran": b"x", "/ran": b"x"}
    entries |= {f"nlvr/dev/images/1/dev-1-0-{n}.png": 500 if kind == 4 and n == 3 else b"x" * 10 for n in range(5)}
    zipped(path, entries, zipfile.ZIP_DEFLATED)
    return path.name, lambda: convert_nlvr(folder, [path])


def image_name(folder, bait, rng):
    """An image id that is a path, or no name at all."""
    names = "../" * rng.randint(1, 9) + "etc/passwd", "/etc/passwd", "COCO_val2014_/../../../x", "..\\..\\x"
    name = rng.choice((*names, "a\0b", "a\nb", "x" * 5000, "", "\ud800"))
    return f"{name!r:.20}", lambda: relative_path(name)


def feature_value(folder, bait, rng):
    """Values of an LMDB: arrays of objects, frames that claim terabytes, nests and types that no record has."""
    path = folder / "features.lmdb"
    with write_features(path, {}) as writer:
        writer.put("1", {"height": 1})
    array = {b"nd": True, b"type": "|O", b"kind": b"", b"shape": [1], b"data": code(bait, rng)}
    arrays = array, {**array, b"type": "<f4", b"shape": [2**40]}, {**array, b"type": "<f4,O"}
    contents = [*({"grid": value} for value in arrays), {"grid": msgpack.ExtType(1, b"x")}, [1], {"../x": 1}]
    frames = [lz4.frame.compress(msgpack.packb(content, use_bin_type=True)) for content in contents]
    frames += [lz4.frame.compress(b"\x91" * 100_000), lz4.frame.compress(b"\xdd\xff\xff\xff\xff")]
    huge = bytearray(lz4.frame.compress(bytes(8), store_size=True))
    huge[6:14] = struct.pack("<Q", 2**43)
    with lmdb.open(str(path), map_size=2**26) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"1", rng.choice([*frames, bytes(huge)]))
    return "features.lmdb/1", lambda: open_features(path).load("1")


def hdf5_store(folder, bait, rng):
    """Groups and fields of an HDF5 file that lie in others, or claim terabytes."""
    path, outside = folder / "features.h5", folder / "outside.h5"
    with h5py.File(outside, "w") as file:
        file.create_group("1")["grid"] = [1.0]
    (folder / "secret").write_bytes(b"secret")
    with write_features(path, {}) as writer:
        writer.put("2", {"height": 1})
    with h5py.File(path, "a") as file:
        kind = rng.randrange(4)
        if kind == 0:
            file["1"] = h5py.ExternalLink("outside.h5", "/1")
        else:
            group = file.create_group("1")
            group.attrs["digest"] = "0"
        if kind == 1:
            group["grid"] = h5py.ExternalLink("outside.h5", "/1/grid")
        elif kind == 2:
            group.create_dataset("grid", (6,), "u1", external=[(str(folder / "secret"), 0, 6)])
        elif kind == 3:
            group.create_dataset("grid", (2**40,), "f4", chunks=(2**10,))
    return "features.h5/1", lambda: open_features(path).load("1")


def region_line(folder, bait, rng):
    """A TSV file of regions that promises more boxes than it has, or base64 that is none."""
    path = folder / "regions.tsv"
    boxes, data = rng.choice(
        (("99999999", "AAAA"), ("36", "AAAA"), ("2", "????"), ("-1", ""), ("1e9", ""), ("9" * 400, ""))
    )
    path.write_text("\t".join(["1", "10", "10", *[data] * 4, boxes, *[data] * 2]) + "\n")
    return path.name, lambda: open_regions(path)


def annotation_text(folder, bait, rng):
    """JSON that nests without end, numbers of a million digits, strings without end."""
    path = folder / "train.json"
    path.write_text(
        "[" + rng.choice(("[" * 300_000, "9" * 1_000_000, '"' + "x" * 2_000_000, '{"a":' * 100_000, "-", "\x00"))
    )
    return path.name, lambda: list(iterate_json_list(path))


def picture(folder, bait, rng):
    """An image whose header promises gigabytes, or a link to a file that is none."""
    path = folder / "vg_raw_images" / "VG_100K" / "1.jpg"
    path.parent.mkdir(parents=True)
    if rng.random() < 0.3:
        path.symlink_to("/etc/passwd")
    else:
        path.write_bytes(image_bomb(rng))
    return path.name, lambda: ImageFolders(folder).load("1")
