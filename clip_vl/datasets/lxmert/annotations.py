"""Sentences, answers and images of the pre-training and VQA annotations, as memory-mapped tables built once.

All ranks and loader workers share the tables through the page cache. The two functions return a view of them; the
tables are made first if none were made yet from exactly these inputs.
"""

import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from clip_vl.datasets.images.collections import COCO_VG, Collection
from clip_vl.datasets.lxmert.entries import read_pretrain_entry, read_vqa_entry
from clip_vl.datasets.storage.cache import build_once
from clip_vl.datasets.storage.columns import ColumnWriter, RaggedColumn, TextColumn, TextWriter, WordWriter, read_column
from clip_vl.datasets.storage.file_digests import file_digest
from clip_vl.engine.errors import DataError

FORMAT = 1  # counts up when the tables change their form or meaning, so that older ones are built again


def build_pretrain_annotations(
    files, *, tokenizer, answer_table, image_sizes, cache_root, limit_source=(), max_length=20, skip_bad=False
):
    """`PretrainAnnotations` of LXMERT files: an item for each (image, category, sentence), in the order of the files.

    answer_table: an `AnswerTable`; answers it does not hold are left out and counted in meta["unknown_answers"]
    image_sizes:  width_heigths.json; images it does not hold are left out and counted in meta["dropped_images"]
    limit_source: categories to leave out
    skip_bad:     leave out entries of the wrong form and count them in meta["skipped"], instead of raising DataError
    """
    limit_source = sorted(set(limit_source))
    kind = _Kind(
        name="pretrain",
        read=functools.partial(read_pretrain_entry, find=answer_table.find, limit_source=frozenset(limit_source)),
        columns={"source": (WordWriter, np.uint8), "number": (ColumnWriter, np.int32)},
        num_answers=len(answer_table),
        settings={"answers": answer_table.digest, "limit_source": limit_source},
    )
    return PretrainAnnotations(_tables(kind, files, tokenizer, image_sizes, cache_root, max_length, skip_bad))


def build_vqa_annotations(
    files,
    *,
    tokenizer,
    answers,
    image_sizes,
    cache_root,
    max_length=20,
    skip_bad=False,
    collection=COCO_VG,
    read_entry=read_vqa_entry,
):
    """`VQAAnnotations` of VQA files: an item for each question, or each image that a question is about.

    answers:    list of the task's answers, in the order of their classes
    collection: the images that the questions are about
    read_entry: reader of one entry, from `entries`
    Everything else is as in `build_pretrain_annotations`.
    """
    words = (WordWriter, np.uint16)
    kind = _Kind(
        name="vqa",
        read=functools.partial(read_entry, find={answer: label for label, answer in enumerate(answers)}.get),
        columns={"question_type": words, "answer_type": words, "question_id": (TextWriter, np.uint8)},
        num_answers=len(answers),
        settings={
            "answers": hashlib.sha256(json.dumps(answers).encode()).hexdigest(),
            "form": read_entry.__name__,
            "collection": collection.name,
        },
        collection=collection,
    )
    return VQAAnnotations(_tables(kind, files, tokenizer, image_sizes, cache_root, max_length, skip_bad))


class _Kind(NamedTuple):
    """What tells pre-training annotations from VQA ones; `read` and `columns` are those of `TableBuilder`."""

    name: str
    read: Callable
    columns: dict
    num_answers: int
    settings: dict  # what the items depend on, beside the files
    collection: Collection = COCO_VG


def _tables(kind, files, tokenizer, image_sizes, cache_root, max_length, skip_bad):
    """The cache folder for these inputs and settings, filled by a `TableBuilder` if there is none."""
    inputs = [*files, image_sizes]
    digests = [file_digest(path, cache_root) for path in inputs]
    settings = kind.settings | {"format": FORMAT, "tokenizer": tokenizer.digest, "max_length": max_length}
    settings |= {"skip_bad": skip_bad, "inputs": digests}

    def build(folder):
        from clip_vl.datasets.lxmert.tables import TableBuilder

        builder = TableBuilder(
            folder, kind.read, kind.columns, kind.num_answers, tokenizer, max_length, image_sizes, kind.collection
        )
        for path in files:
            builder.read_file(path, skip_bad)
        for path, digest in zip(inputs, digests):
            if file_digest(path, cache_root) != digest:
                raise DataError(f"{path} changed while it was read; wait until it is whole")
        builder.close({"files": [Path(path).name for path in files], "settings": settings})

    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    return build_once(cache_root, f"{kind.name}-annotations", key, build)


class _Annotations:
    """Items 0 ... N - 1 of one cache folder. Pickles as its path: a loader worker opens its own maps.

    image_ids:   sequence of M strings           image_index: (N,) int32, row of image_ids and image_sizes
    image_sizes: (M, 2) int32, height and width  meta: dict of counts, input files and settings
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        self.meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
        self.image_ids = TextColumn(folder, "image_ids")
        self.image_sizes = read_column(folder, "image_sizes")
        self.image_index = read_column(folder, "image_index")
        self._sentences = TextColumn(folder, "sentences")
        settings = self.meta["settings"]
        self.digests = dict(zip(self.meta["files"], settings["inputs"]))  # {what the items are made of: digest}
        self.digests |= {"answers": settings["answers"], "vocabulary": settings["tokenizer"]}
        self.digests["sizes of the images"] = hashlib.sha256(self.image_sizes.tobytes()).hexdigest()
        self._tokens = RaggedColumn(folder, "tokens")
        self._answer_ids = RaggedColumn(folder, "answer_ids")
        self._answer_scores = read_column(folder, "answer_scores")

    def __reduce__(self):
        return type(self), (self.folder,)

    def __len__(self):
        return len(self.image_index)

    def image_id(self, item):
        return self.image_ids[self.image_index[item]]

    def sentence(self, item):
        return self._sentences[item]

    def tokens(self, item):
        """Ids of `[CLS] ... [SEP]`: a read-only integer array, at most as long as the cache was built for."""
        return self._tokens[item]

    def answers(self, item):
        """(classes, scores) of the item's answers: an integer and a float32 array, both empty without any."""
        offsets = self._answer_ids.offsets
        return self._answer_ids[item], self._answer_scores[offsets[item] : offsets[item + 1]]

    def answer_totals(self, num_answers):
        """Sum of the scores of each class over all items, (num_answers,)."""
        return np.bincount(self._answer_ids.values, weights=self._answer_scores, minlength=num_answers)


class PretrainAnnotations(_Annotations):
    """Adds source: (N,) uint8, index into `sources`, the names of the sentence categories."""

    def __init__(self, folder):
        super().__init__(folder)
        self.source, self.sources = read_column(folder, "source"), self.meta["words"]["source"]
        self._number = read_column(folder, "number")

    def uid(self, item):
        """Image, category and place of the sentence in it, as published: COCO_val2014_000000000042_vqa_003."""
        return f"{self.image_id(item)}_{self.sources[self.source[item]]}_{self._number[item]:03d}"


class VQAAnnotations(_Annotations):
    """Adds question_type_index and answer_type_index: (N,) uint16, indices into `question_types` and `answer_types`,
    where "" stands for an unknown type.
    """

    def __init__(self, folder):
        super().__init__(folder)
        self.question_types, self.answer_types = (self.meta["words"][name] for name in ("question_type", "answer_type"))
        self.question_type_index = read_column(folder, "question_type")
        self.answer_type_index = read_column(folder, "answer_type")
        self._question_ids = TextColumn(folder, "question_id")

    def question_id(self, item):
        """The identifier as it stands in the file: an int or a str."""
        return json.loads(self._question_ids[item])

    def question_type(self, item):
        return self.question_types[self.question_type_index[item]]

    def answer_type(self, item):
        return self.answer_types[self.answer_type_index[item]]
