"""Converts SNLI-VE's official JSON lines, or UNITER's text LMDBs of it, to snli_ve/{train,dev,test}.json.

LMDBs are not trusted: their values are decoded to plain fields of bounded size, without running code.
"""

import re
from pathlib import Path

from tqdm import tqdm

from clip_vl.datasets.features.records import damage, unpack_frame
from clip_vl.datasets.storage import lmdb_files
from clip_vl.datasets.lxmert.tasks import ENTAILMENTS
from clip_vl.datasets.official.files import OFFICIAL, expected_form, text_of, write_list
from clip_vl.datasets.storage.json_stream import iterate_json_lines, read_json
from clip_vl.engine.errors import DataError

MAX_TEXT = 2**20  # bytes of a value; UNITER's have about 1 KB
UNDECIDED = "-"  # SNLI's label of a pair on which its annotators disagree
IMAGE = re.compile(r"([0-9]+)(\.jpg)?|flickr30k_0*([0-9]+)\.npz")  # the last: UNITER's feature file of an image


def convert_snli_ve(root, splits=("train", "dev", "test")):
    """official/snli_ve_<split>.jsonl, or else official/ve_<split>.db -> snli_ve/<split>.json; returns paths written.

    A row has the hypothesis in lower case and the image in place of the premise.
    """
    written = []
    for split in splits:
        lines, database = (Path(root, OFFICIAL, name) for name in (f"snli_ve_{split}.jsonl", f"ve_{split}.db"))
        rows = _official_rows(lines) if lines.exists() else _uniter_rows(database)
        written += write_list(Path(root, "snli_ve", f"{split}.json"), rows)
    return written


def _official_rows(path):
    with path.open("rb") as lines:
        for number, entry in tqdm(iterate_json_lines(lines, path), path.stem, unit="pair", disable=None):
            with expected_form(f"{path}:{number}"):
                label = text_of(entry, "gold_label")
                if label not in (*ENTAILMENTS, UNDECIDED):
                    raise ValueError(f"gold_label {label!r:.40} is none of {', '.join(ENTAILMENTS)}")
                row = _row(text_of(entry, "pairID"), entry["Flickr30K_ID"], text_of(entry, "sentence2"), label)
            if label != UNDECIDED:
                yield row


def _uniter_rows(path):
    """Rows of a text LMDB, in the order of its keys; DataError if its id2len.json has another number of them."""
    import lmdb

    try:
        with lmdb_files.open_reader(path).begin() as transaction:
            entries, expected = transaction.stat()["entries"], len(read_json(path / "id2len.json"))
            if entries != expected:
                raise DataError(f"{path} has {entries:,} texts, but {expected:,} in its id2len.json; fetch it again")
            for key, value in tqdm(transaction.cursor(), path.stem, entries, unit="pair", disable=None):
                name = key.decode(errors="replace")
                with damage(f"{path}/{name}"), expected_form(f"{path}/{name}"):
                    row = _uniter_row(name, unpack_frame(value, MAX_TEXT))
                yield row
    except lmdb.Error as error:
        raise DataError(f"{path} is not a whole LMDB: {error}; fetch it again") from None
    finally:
        lmdb_files.close_reader(path)


def _uniter_row(name, record):
    labels = record["target"]["labels"]
    if len(labels) != 1 or type(labels[0]) is not int or labels[0] not in range(len(ENTAILMENTS)):
        raise ValueError(f"target.labels {labels!r:.40} is not one of 0, 1, 2 in a list")
    image = record["image_id"] if "image_id" in record else record["img_fname"]
    return _row(record.get("pairID", name), image, text_of(record, "sentence2"), ENTAILMENTS[labels[0]])


def _row(question_id, image, hypothesis, label):
    found = IMAGE.fullmatch(str(image))
    if not found:
        raise ValueError(f"{image!r:.80} is not the number of a Flickr30k image")
    img_id = found[1] or found[3]
    return {"question_id": question_id, "img_id": img_id, "sent": hypothesis.lower(), "label": {label: 1.0}}
