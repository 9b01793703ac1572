import json
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from clip_vl.datasets.lxmert import tables as annotation_tables
from clip_vl.datasets.lxmert.annotations import build_pretrain_annotations, build_vqa_annotations
from clip_vl.datasets.lxmert.answers import AnswerTable
from clip_vl.datasets.lxmert.wordpiece import load_tokenizer
from clip_vl.datasets.storage import json_stream
from clip_vl.datasets.storage.cache import writable_root
from clip_vl.engine.errors import DataError, UserError

COCO, VG = "COCO_train2014_000000000042", "2317"
WORDS = "[PAD] [UNK] [CLS] [SEP] [MASK] two dogs share a sofa . how many ? red cushion is it".split()
SIZES = {
    f"data/mscoco/train2014/{COCO}.jpg": [480, 640],
    f"data/vg_raw_images/VG_100K/{VG}.jpg": [500, 375],
    "data/mscoco/val2014/COCO_val2014_000000000007.jpg": [1, 2],
}
ENTRIES = [
    {
        "img_id": COCO,
        "sentf": {
            "mscoco": ["Two dogs share a sofa."],
            "vqa": ["How many dogs?", "Is it red?"],
            "vg": ["a red cushion"],
        },
        "labelf": {"vqa": [{"two": 1.0, "3": 0.3, "platypus": 0.3}, {}]},
    },
    {"img_id": "9999", "sentf": {"vg": ["lost", "gone", "away"]}, "labelf": {}},  # has no size
    {"img_id": VG, "sentf": {"vg": ["two dogs"], "gqa": ["is it a sofa ?"]}, "labelf": {"gqa": [{"sofa": 1}]}},
    {"img_id": "2318", "sentf": {"vg": []}, "labelf": {}},  # has no sentences
]
QUESTIONS = [
    {
        "question_id": 42001,
        "img_id": COCO,
        "sent": "How many dogs?",
        "question_type": "how many",
        "answer_type": "number",
        "label": {"2": 1, "3": 0.3, "Two": 0.9},
    },
    {"question_id": "0042", "img_id": VG, "sent": "Is it red?", "label": {}},
    {"question_id": 9999000, "img_id": "9999", "sent": "is it lost ?"},
]


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


class Data:
    """A small data root, and its two builders."""

    def __init__(self, root):
        self.root, self.cache = root, root / "cache"
        (root / "vocab.txt").write_text("\n".join(WORDS))
        self.tokenizer = load_tokenizer(root)
        table = [{"ans": answer, "dsets": ["vqa"]} for answer in ("2", "3", "sofa")]
        self.table = AnswerTable(self.write("all_ans.json", table))
        self.sizes = self.write("width_heigths.json", SIZES)

    def write(self, name, value, **style):
        path = self.root / name
        path.write_text(value if isinstance(value, str) else json.dumps(value, **style), encoding="utf-8")
        return path

    def pretrain(self, *files, **options):
        files = files or [self.write("mscoco_train.json", ENTRIES)]
        common = {"tokenizer": self.tokenizer, "image_sizes": self.sizes, "cache_root": self.cache}
        return build_pretrain_annotations(files, **(common | {"answer_table": self.table} | options))

    def vqa(self, *files, **options):
        files = files or [self.write("train.json", QUESTIONS)]
        common = {"tokenizer": self.tokenizer, "image_sizes": self.sizes, "cache_root": self.cache}
        return build_vqa_annotations(files, **(common | {"answers": ["", "2", "3"]} | options))


@pytest.fixture
def data(tmp_path):
    return Data(tmp_path)


@pytest.fixture
def builds(monkeypatch):
    """The folders that were built, in order."""
    folders, builder = [], annotation_tables.TableBuilder

    def counted(folder, *arguments):
        folders.append(folder)
        return builder(folder, *arguments)

    monkeypatch.setattr(annotation_tables, "TableBuilder", counted)
    return folders


def content(view):
    items = range(len(view))
    return [(view.uid(i), view.tokens(i).tolist(), answers_of(view, i), int(view.image_index[i])) for i in items]


def answers_of(view, item):
    ids, scores = view.answers(item)
    return {label: round(score, 4) for label, score in zip(ids.tolist(), scores.tolist())}


def test_pretraining_items_are_image_category_sentence_in_file_order(data):
    view = data.pretrain()
    assert [view.uid(item) for item in range(len(view))] == [
        f"{COCO}_mscoco_000",
        f"{COCO}_vqa_000",
        f"{COCO}_vqa_001",
        f"{COCO}_vg_000",
        f"{VG}_vg_000",
        f"{VG}_gqa_000",
    ]
    assert [view.sentence(item) for item in (1, 4)] == ["How many dogs?", "two dogs"]
    assert [view.tokens(item).tolist() for item in (1, 4)] == [[2, 11, 12, 6, 13, 3], [2, 5, 6, 3]]
    assert [answers_of(view, item) for item in range(6)] == [{}, {0: 1.0, 1: 0.3}, {}, {}, {}, {2: 1.0}]
    assert list(view.image_ids) == [COCO, VG] and view.image_sizes.tolist() == [[480, 640], [500, 375]]
    assert view.image_index.tolist() == [0, 0, 0, 0, 1, 1]
    assert [view.sources[source] for source in view.source] == ["mscoco", "vqa", "vqa", "vg", "vg", "gqa"]
    assert view.answer_totals(3).round(4).tolist() == [1.0, 0.3, 1.0]


def test_what_was_left_out_is_counted(data):
    meta = data.pretrain().meta
    counts = ("items", "labelled", "images", "dropped_images", "dropped_items", "unknown_answers", "skipped")
    assert [meta[name] for name in counts] == [6, 2, 2, 1, 3, 1, 0]
    assert meta["dropped_examples"] == ["9999"] and meta["files"] == ["mscoco_train.json"]


def test_vqa_items_are_questions_in_file_order(data):
    view = data.vqa()
    assert [view.question_id(item) for item in range(len(view))] == [42001, "0042"]
    assert [view.image_id(item) for item in range(2)] == [COCO, VG]
    assert [answers_of(view, item) for item in range(2)] == [{1: 1.0, 2: 0.3}, {}]  # "Two" is looked up as it stands
    assert [view.question_type(item) for item in range(2)] == ["how many", ""]
    assert [view.answer_type(item) for item in range(2)] == ["number", ""]
    assert view.answer_type_index.tolist() == [0, 1] and view.answer_types == ["number", ""]
    assert [view.meta[name] for name in ("labelled", "dropped_images", "unknown_answers")] == [1, 1, 1]


def test_several_files_follow_each_other_and_share_their_images(data):
    files = [data.write(f"{name}.json", ENTRIES[:1]) for name in ("a", "b")]
    view = data.pretrain(*files)
    assert len(view) == 8 and view.meta["images"] == 1 and view.image_index.tolist() == [0] * 8
    assert len(data.pretrain(files[0])) == 4 and len(data.pretrain(files[0], files[0])) == 8


def test_categories_named_in_limit_source_are_left_out(data):
    view = data.pretrain(limit_source=["vg", "mscoco"])
    assert view.sources == ["vqa", "gqa"] and len(view) == 3
    assert view.meta["dropped_images"] == 0  # nothing but left-out sentences: not a missing image


def test_sentences_end_with_the_closing_token_at_the_maximum_length(data):
    view = data.pretrain(max_length=4)
    assert view.tokens(0).tolist() == [2, 5, 6, 3]
    assert max(len(view.tokens(item)) for item in range(len(view))) == 4


@pytest.mark.parametrize("batch", [1, 2, 6, 7])
def test_the_tables_do_not_depend_on_the_batch(data, monkeypatch, batch):
    whole = content(data.pretrain())
    monkeypatch.setattr(annotation_tables, "BATCH", batch)
    assert content(data.pretrain(cache_root=data.root / "other")) == whole and len(whole) == 6


def test_large_vocabularies_get_wider_columns(data, monkeypatch):
    monkeypatch.setattr(data.tokenizer, "vocab_size", 1 << 17)
    view = data.vqa(answers=["", "2", *map(str, range(3, 1 << 17))])
    assert view.tokens(0).dtype == np.int32 and view.answers(0)[0].dtype == np.int32


def test_the_same_inputs_are_built_once(data, builds):
    for _ in range(3):
        data.pretrain(limit_source=("vg", "gqa"))
        data.pretrain(limit_source=["gqa", "vg", "vg"])
    assert len(builds) == 1


def test_any_other_input_gets_its_own_tables(data, builds):
    first = data.write("first.json", ENTRIES)
    second = data.write("second.json", ENTRIES[:1])
    data.pretrain(first)
    data.pretrain(second)
    data.pretrain(first, second)
    data.pretrain(second, first)
    data.pretrain(first, limit_source=["vg"])
    data.pretrain(first, max_length=19)
    data.pretrain(first, skip_bad=True)
    data.table.digest = "another table"
    data.pretrain(first)
    data.tokenizer.digest = "another vocabulary"
    data.pretrain(first)
    data.write("width_heigths.json", SIZES | {"data/vg_raw_images/VG_100K/9999.jpg": [3, 3]})
    assert len(data.pretrain(first)) == 9
    assert len(builds) == 10 == len(list(data.cache.glob("pretrain-annotations-*")))


def test_changed_content_of_the_same_size_gets_its_own_tables(data, builds):
    path = data.write("train.json", ENTRIES)
    before = data.pretrain(path)
    data.write("train.json", json.dumps(ENTRIES).replace("Two dogs", "Six cats"))
    after = data.pretrain(path)
    assert (before.sentence(0), after.sentence(0)) == ("Two dogs share a sofa.", "Six cats share a sofa.")


def test_a_moved_file_keeps_its_tables(data, builds):
    path = data.write("train.json", ENTRIES)
    data.pretrain(path)
    data.pretrain(path.rename(path.with_name("moved.json")))
    assert len(builds) == 1


@pytest.mark.parametrize("name", ["tokens.npy", "sentences_offsets.npy", "meta.json", "image_sizes.npy"])
def test_a_truncated_table_is_built_again(data, builds, name):
    folder = data.pretrain().folder
    os.truncate(folder / name, (folder / name).stat().st_size - 1)
    assert data.pretrain().tokens(4).tolist() == [2, 5, 6, 3]
    assert len(builds) == 2


def test_an_input_that_changes_during_the_build_is_refused(data, monkeypatch):
    path, read_file = data.write("train.json", ENTRIES), annotation_tables.TableBuilder.read_file

    def read_and_change(self, *arguments):
        read_file(self, *arguments)
        data.write("train.json", ENTRIES[:1])

    monkeypatch.setattr(annotation_tables.TableBuilder, "read_file", read_and_change)
    with pytest.raises(DataError, match=r"train.json changed while it was read"):
        data.pretrain(path)
    assert not list(data.cache.glob("*annotations*"))


def test_a_view_travels_to_loader_workers_as_a_path(data):
    for view in (data.pretrain(), data.vqa()):
        pickled = pickle.dumps(view)
        assert len(pickled) < 500
        copy = pickle.loads(pickled)
        assert copy.sentence(0) == view.sentence(0) and copy.meta == view.meta and len(copy) == len(view)


def test_arrays_of_a_view_are_read_only_maps(data):
    view = data.pretrain()
    for array in (view.image_index, view.source, view.image_sizes, view.tokens(0), *view.answers(0)):
        assert not array.flags.writeable and isinstance(array, np.ndarray)


def test_nothing_is_left_beside_the_tables(data):
    shared_before = set(Path("/dev/shm").iterdir())
    data.pretrain()
    assert set(Path("/dev/shm").iterdir()) <= shared_before
    assert [path.name[:20] for path in data.cache.iterdir()] == ["pretrain-annotations"]


def changed(**keys):
    return {**ENTRIES[0], **keys}


WRONG_ENTRIES = [
    (["a", "list"], "an object was expected, not a list"),
    ("text", "an object was expected, not 'text'"),
    ({"img_id": COCO, "sentf": {}}, "the key 'labelf' is missing; it must hold an object"),
    (changed(img_id=42), "the key 'img_id' must hold a string, not 42"),
    (changed(sentf=["a"]), "the key 'sentf' must hold an object, not a list"),
    (changed(labelf=None), "the key 'labelf' must hold an object, not None"),
    (changed(sentf={"vg": "a dog"}), "the key 'vg' must hold a list, not 'a dog'"),
    (changed(sentf={"vg": ["a dog", 3]}), "a sentence must be a string, not 3"),
    (changed(sentf={"vg": ["a \ud83d dog"]}), "half of a surrogate pair"),
    (changed(labelf={"vqa": [{}]}), "category 'vqa' has 2 sentences in 'sentf' but 1 labels in 'labelf'"),
    (changed(labelf={"vqa": [{}, ["2"]]}), "a label must be an object of answers and scores, not a list"),
    (changed(labelf={"vqa": [{}, {"2": 3}]}), "the score of answer '2' must be a number from 0 to 1, not 3"),
    (changed(img_id="../../etc/passwd"), "is not a plain file name"),
    (changed(img_id=""), "is not a plain file name"),
]

WRONG_QUESTIONS = [
    ({"img_id": COCO, "sent": "how ?"}, "the key 'question_id' is missing; it must hold a number or a string"),
    (QUESTIONS[0] | {"question_id": 4.5}, "the key 'question_id' must hold a number or a string, not 4.5"),
    (QUESTIONS[0] | {"question_id": True}, "the key 'question_id' must hold a number or a string, not True"),
    (QUESTIONS[0] | {"question_id": "42001"}, "the question id 42001 is the id of an earlier question"),
    (QUESTIONS[0] | {"question_id": "\ud83d"}, "half of a surrogate pair"),
    (QUESTIONS[0] | {"question_id": " "}, "an id must be a number or a text, not an empty one"),
    (QUESTIONS[0] | {"sent": None}, "the key 'sent' must hold a string, not None"),
    (QUESTIONS[0] | {"label": ["2"]}, "the key 'label' must hold an object, not a list"),
    (QUESTIONS[0] | {"answer_type": 3}, "the key 'answer_type' must hold a string, not 3"),
]


@pytest.mark.parametrize("entry, words", WRONG_ENTRIES)
def test_a_wrong_pretraining_entry_is_named_with_file_line_and_key(data, entry, words):
    path = data.write("train.json", [ENTRIES[0], entry], indent=1)
    line = path.read_text().splitlines().index(" },") + 2
    with pytest.raises(DataError) as caught:
        data.pretrain(path)
    assert str(caught.value).startswith(f"{path}:{line}: entry 2") and words in str(caught.value)
    assert not list(data.cache.glob("*annotations*"))


@pytest.mark.parametrize("entry, words", WRONG_QUESTIONS)
def test_a_wrong_question_is_named_with_file_line_and_key(data, entry, words):
    path = data.write("train.json", "[\n" + json.dumps(QUESTIONS[0]) + ",\n" + json.dumps(entry) + "]")
    with pytest.raises(DataError) as caught:
        data.vqa(path)
    assert str(caught.value).startswith(f"{path}:3: entry 2") and words in str(caught.value)


def test_wrong_entries_are_left_out_and_counted_when_asked(data):
    path = data.write("train.json", [ENTRIES[0], *(entry for entry, _ in WRONG_ENTRIES), ENTRIES[2]])
    view = data.pretrain(path, skip_bad=True)
    assert len(view) == 6 and view.meta["skipped"] == len(WRONG_ENTRIES)
    assert len(view.meta["skipped_examples"]) == 5 and view.meta["skipped_examples"][0].startswith(f"{path}:1: entry 2")


def test_text_that_is_no_json_is_an_error_even_then(data):
    path = data.write("train.json", json.dumps(ENTRIES)[:-30])
    with pytest.raises(DataError, match=r"train.json:1: the file ends inside the item"):
        data.pretrain(path, skip_bad=True)


@pytest.mark.parametrize(
    "entries, words",
    [
        ([], "there are no sentences to read"),
        (ENTRIES[3:], "there are no sentences to read"),
        (ENTRIES[1:2], r"none of the 1 images is listed in .*sizes.json.*'data/vg_raw_images/VG_100K/9999.jpg'"),
    ],
)
def test_an_empty_data_set_is_an_error(data, entries, words):
    sizes = data.write("sizes.json", SIZES)
    with pytest.raises(DataError, match=rf"train.json: .*{words}"):
        data.pretrain(data.write("train.json", entries), image_sizes=sizes)


@pytest.mark.parametrize("size", [[480], [480, 0], [480, "640"], [480.0, 640], 3, {"h": 3}, [True, True]])
def test_a_wrong_image_size_is_named(data, size):
    data.write("width_heigths.json", {**SIZES, f"data/vg_raw_images/VG_100K/{VG}.jpg": size})
    with pytest.raises(DataError, match=r"width_heigths.json: 'data/vg_raw.*' must be \[height, width\] in pixels"):
        data.pretrain()


def test_missing_inputs_are_named(data):
    with pytest.raises(UserError, match=r"none.json is missing"):
        data.pretrain(data.root / "none.json")
    with pytest.raises(UserError, match=r"nosizes.json is missing"):
        data.pretrain(image_sizes=data.root / "nosizes.json")
    with pytest.raises(DataError, match=r"list.json: an object of image paths"):
        data.pretrain(image_sizes=data.write("list.json", []))


def test_memory_of_a_build_does_not_grow_with_the_sentences(data, monkeypatch):
    monkeypatch.setattr(annotation_tables, "BATCH", 500)
    monkeypatch.setattr(json_stream, "READ_BYTES", 10_000)
    peaks = []
    for count in (40, 400):
        path = data.write("train.json", [ENTRIES[0] | {"sentf": {"vg": ["two red dogs"] * 50}}] * count)
        tracemalloc.start()
        assert len(data.pretrain(path)) == 50 * count
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0] < 2e6
