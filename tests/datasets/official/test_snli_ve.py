"""SNLI-VE from its official lines and from UNITER's LMDBs, which must agree; hostile values run nothing."""

import json

import lmdb
import lz4.frame
import msgpack
import numpy as np
import pytest

from clip_vl.datasets.official import snli_ve as module
from clip_vl.datasets.official.snli_ve import convert_snli_ve
from clip_vl.datasets.storage.json_stream import iterate_json_list
from clip_vl.engine.errors import DataError

PAIR = {
    "Flickr30K_ID": "3563617591", "annotator_labels": ["neutral"] * 3, "captionID": "3563617591.jpg#4",
    "gold_label": "neutral", "pairID": "3563617591.jpg#4r1n", "sentence1": "A boy.", "sentence2": "A Boy smiles.",
}  # fmt: skip
ROW = {"question_id": PAIR["pairID"], "img_id": "3563617591", "sent": "a boy smiles.", "label": {"neutral": 1.0}}


def write_lines(root, *entries, split="dev"):
    path = root / "official" / f"snli_ve_{split}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join((entry if isinstance(entry, str) else json.dumps(entry)) + "\n" for entry in entries))


def uniter(pair, **change):
    """A value as UNITER's preprocessing writes it."""
    number = module.ENTAILMENTS.index(pair["gold_label"])
    image = f"flickr30k_{pair['Flickr30K_ID']:0>12}.npz"
    value = pair | {"input_ids": [1037, 2879], "img_fname": image, "target": {"labels": [number], "scores": [1.0]}}
    return lz4.frame.compress(msgpack.packb(value | change, use_bin_type=True))


def write_lmdb(root, values, split="dev", ids=None):
    path = root / "official" / f"ve_{split}.db"
    path.mkdir(parents=True)
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    (path / "meta.json").write_text(json.dumps({"bert": "bert-base-cased"}))
    (path / "id2len.json").write_text(json.dumps(dict.fromkeys(values if ids is None else ids, 4)))
    return path


def rows(root, split="dev"):
    return [row for _, row in iterate_json_list(root / "snli_ve" / f"{split}.json")]


def test_a_row_is_the_hypothesis_in_lower_case_and_undecided_pairs_are_left_out(tmp_path):
    write_lines(tmp_path, PAIR, PAIR | {"gold_label": "-"}, PAIR | {"gold_label": "entailment"})
    assert convert_snli_ve(tmp_path, ["dev"]) == [tmp_path / "snli_ve" / "dev.json"]
    assert rows(tmp_path) == [ROW, ROW | {"label": {"entailment": 1.0}}]
    assert convert_snli_ve(tmp_path, ["dev"]) == []


def test_the_lmdb_gives_the_rows_of_the_lines(tmp_path):
    other = PAIR | {"Flickr30K_ID": "36979", "pairID": "36979.jpg#0r1c", "gold_label": "contradiction"}
    write_lmdb(tmp_path / "a", {f"{place}_x": uniter(pair) for place, pair in enumerate((PAIR, other))})
    (tmp_path / "b").mkdir()
    write_lines(tmp_path / "b", PAIR, other)
    for root in (tmp_path / "a", tmp_path / "b"):
        convert_snli_ve(root, ["dev"])
    assert rows(tmp_path / "a") == rows(tmp_path / "b")


def test_an_image_number_and_arrays_in_a_value_are_fine(tmp_path):
    array = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2], b"data": np.ones(2, np.float32).tobytes()}
    write_lmdb(tmp_path, {"k": uniter(PAIR, image_id=3563617591, mix=array)})
    convert_snli_ve(tmp_path, ["dev"])
    assert rows(tmp_path) == [ROW]


def frame(value):
    return lz4.frame.compress(msgpack.packb(value, use_bin_type=True))


HOSTILE_ARRAY = {b"nd": True, b"type": "|O8", b"kind": b"O", b"shape": [1], b"data": b"cos\nsystem\n(S'touch ran'\ntR."}
CLAIMS_A_TERABYTE = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": [2**38], b"data": b"abcd"}


@pytest.mark.parametrize(
    "value, words",
    [
        (b"no frame", "k: "),
        (lz4.frame.compress(b"\xc1"), r"k does not have its official form \(FormatError\)"),
        (uniter(PAIR)[:-9], "k: "),
        (frame([1, 2]), "k does not .*holds a list"),
        (frame({"sentence2": "a"}), "k has an entry without the key 'target'"),
        (uniter(PAIR, target={"labels": [1, 2]}), r"target.labels \[1, 2\] is not one of 0, 1, 2"),
        (uniter(PAIR, target={"labels": [-1]}), "is not one of 0, 1, 2"),
        (uniter(PAIR, target={"labels": [3]}), "is not one of 0, 1, 2"),
        (uniter(PAIR, image_id="../../3"), "is not the number of a Flickr30k image"),
        (uniter(PAIR, sentence2=7), "'sentence2' is a int, not a string"),
        (uniter(PAIR, mix=HOSTILE_ARRAY), "arrays hold plain numbers"),
        (uniter(PAIR, mix=CLAIMS_A_TERABYTE), "bytes for an array"),
        (frame({"sentence2": "a" * (module.MAX_TEXT + 1)}), "claims 1,048,5"),
    ],
    ids=range(13),
)
def test_a_hostile_or_damaged_value_is_named_and_nothing_half_written_stays(tmp_path, value, words):
    path = write_lmdb(tmp_path, {"a": uniter(PAIR), "k": value})
    with pytest.raises(DataError, match=words) as caught:
        convert_snli_ve(tmp_path, ["dev"])
    assert f"{path}/k" in str(caught.value)
    assert not list((tmp_path / "snli_ve").iterdir())


def test_an_lmdb_without_all_its_texts_or_that_is_none_is_refused(tmp_path):
    path = write_lmdb(tmp_path, {"a": uniter(PAIR)}, ids=["a", "b"])
    with pytest.raises(DataError, match=r"has 1 texts, but 2 in its id2len.json"):
        convert_snli_ve(tmp_path, ["dev"])
    (path / "data.mdb").write_bytes(b"nothing" * 2000)
    with pytest.raises(DataError, match=r"ve_dev.db is not a whole LMDB"):
        convert_snli_ve(tmp_path, ["dev"])


@pytest.mark.parametrize(
    "entry, words",
    [
        (PAIR | {"gold_label": "maybe"}, r"jsonl:2 .*gold_label 'maybe' is none of contradiction, entailment, neutral"),
        ({"gold_label": "neutral"}, r"jsonl:2 has an entry without the key 'pairID'"),
        (PAIR | {"Flickr30K_ID": "a/b"}, r"jsonl:2 .*'a/b' is not the number of a Flickr30k image"),
        ('{"gold_label": "neu', r"jsonl:2: not valid JSON: .*cut short"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, entry, words):
    write_lines(tmp_path, PAIR, entry)
    with pytest.raises(DataError, match=words):
        convert_snli_ve(tmp_path, ["dev"])
    assert not list((tmp_path / "snli_ve").iterdir())
