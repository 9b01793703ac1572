"""Annotation files -> tables: read as a stream, tokenised once, written column by column.

Memory stays at one batch of sentences and the names and sizes of the images, however many sentences there are.
"""

import json
from itertools import chain
from pathlib import Path

import numpy as np

from clip_vl.datasets.images.collections import COCO_VG, relative_path, size_key
from clip_vl.datasets.storage.columns import ColumnWriter, RaggedWriter, TextWriter, WordWriter
from clip_vl.datasets.storage.json_stream import iterate_json_list, read_json
from clip_vl.engine.errors import DataError
from clip_vl.engine.readers.text import id_of

BATCH = 8192  # sentences tokenised and written at a time
EXAMPLES = 5  # names kept of what was left out


class TableBuilder:
    """Writes the tables: items wait in `pending`, a list for each column, until a batch of them is tokenised."""

    def __init__(self, folder, read, columns, num_answers, tokenizer, max_length, image_sizes, collection=COCO_VG):
        """
        read:        entry of a file -> image id, or a tuple of them, each of which gets the items; list of
                     `entries.Item`; number of unknown answers
        columns:     {name: (writer class, dtype)} of what the items hold beside sentence and answers
        image_sizes: JSON file of {size key: [height, width]} of the images of `collection`
        """
        self.collection = collection
        self.folder, self.read, self.tokenizer, self.max_length = Path(folder), read, tokenizer, max_length
        self.sizes_path, self.sizes = image_sizes, read_json(image_sizes)
        if not isinstance(self.sizes, dict):
            raise DataError(f"{image_sizes}: an object of image paths and [height, width] was expected")
        columns = columns | {
            "image_index": (ColumnWriter, np.int32),
            "sentences": (TextWriter, np.uint8),
            "tokens": (RaggedWriter, _index_type(tokenizer.vocab_size)),
            "answer_ids": (RaggedWriter, _index_type(num_answers)),
            "answer_scores": (ColumnWriter, np.float32),  # row i is where row i of answer_ids is
        }
        self.writers = {name: kind(folder, name, dtype) for name, (kind, dtype) in columns.items()}
        self.pending = {name: [] for name in columns}
        self.images, self.image_sizes = {}, []  # image id -> row, or None when it is dropped
        self.counts = dict.fromkeys(("items", "labelled", "unknown_answers", "dropped_items", "skipped"), 0)
        self.skipped_examples = []

    def read_file(self, path, skip_bad=False):
        """Add the items of a JSON list. An entry of the wrong form raises DataError, or is counted with `skip_bad`."""
        from tqdm import tqdm

        self.question_ids = set()  # of this file: the splits of a task may each count from 1
        progress = tqdm(iterate_json_list(path), desc=f"reading {path}", unit=" entries", disable=None)
        for number, (line, entry) in enumerate(progress, start=1):
            try:
                img_ids, items, unknown = self.read(entry)
                self._check_ids(items)
                images = self._images(img_ids) if items else None
            except DataError as error:
                self._complain(f"{path}:{line}: entry {number:,}{_name(entry)}: {error}", skip_bad)
                continue
            if images is None:
                self.counts["dropped_items"] += len(items)
                continue
            self.counts["unknown_answers"] += unknown
            for item in items:
                for image in images:
                    self._add(image, item)
        self._flush()

    def _check_ids(self, items):
        """Raise DataError for the identifier of an earlier question, be it written as a number or as a text."""
        for item in items:
            if "question_id" in item.columns:
                number = id_of(json.loads(item.columns["question_id"]))
                if number in self.question_ids:
                    raise DataError(f"the question id {number} is the id of an earlier question")
                self.question_ids.add(number)

    def _complain(self, sentence, skip_bad):
        if not skip_bad:
            raise DataError(sentence) from None
        self.counts["skipped"] += 1
        self.skipped_examples = [*self.skipped_examples, sentence][:EXAMPLES]

    def _images(self, img_ids):
        """The rows of one image id, or of each of a tuple of them; None when a size is not known."""
        rows = [self._image(img_id) for img_id in ((img_ids,) if isinstance(img_ids, str) else img_ids)]
        return None if None in rows else rows

    def _image(self, img_id):
        """The image's row in the table of images, or None when its size is not known."""
        if img_id not in self.images:
            key = size_key(relative_path(img_id, self.collection))
            size = self.sizes.get(key)
            if size is not None:
                self.image_sizes.append(_checked_size(size, self.sizes_path, key))
            self.images[img_id] = None if size is None else len(self.image_sizes) - 1
        return self.images[img_id]

    def _add(self, image, item):
        pending = self.pending
        pending["image_index"].append(image)
        pending["sentences"].append(item.sentence)
        pending["answer_ids"].append(item.answer_ids)
        pending["answer_scores"].append(item.answer_scores)
        for name, value in item.columns.items():
            pending[name].append(value)
        self.counts["items"] += 1
        self.counts["labelled"] += bool(item.answer_ids)
        if len(pending["sentences"]) == BATCH:
            self._flush()

    def _flush(self):
        pending = self.pending
        pending["tokens"] = self.tokenizer.encode(pending["sentences"], self.max_length)
        pending["answer_scores"] = list(chain.from_iterable(pending["answer_scores"]))
        for name, writer in self.writers.items():
            writer.extend(pending[name])
            pending[name] = []

    def close(self, meta):
        """Write the table of images and `meta.json`; an empty data set is an error."""
        kept = [img_id for img_id, row in self.images.items() if row is not None]
        dropped = [img_id for img_id, row in self.images.items() if row is None]
        if not kept:
            raise DataError(f"{', '.join(meta['files'])}: {self._why_empty(dropped)}")
        self.writers["image_ids"] = TextWriter(self.folder, "image_ids", np.uint8)
        self.writers["image_ids"].extend(kept)
        np.save(self.folder / "image_sizes.npy", np.array(self.image_sizes, dtype=np.int32))
        for writer in self.writers.values():
            writer.close()
        words = {name: writer.words for name, writer in self.writers.items() if isinstance(writer, WordWriter)}
        meta = meta | self.counts | {"images": len(kept), "dropped_images": len(dropped), "words": words}
        meta |= {"dropped_examples": dropped[:EXAMPLES], "skipped_examples": self.skipped_examples}
        (self.folder / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")

    def _why_empty(self, dropped):
        if not dropped:
            return "; ".join(["there are no sentences to read", *self.skipped_examples[:1]])
        key = size_key(relative_path(dropped[0], self.collection))
        return (
            f"none of the {len(dropped):,} images is listed in {self.sizes_path} (such as {key!r}); "
            "`python -m clip_vl.prepare check` finds the images and writes their sizes"
        )


def _name(entry):
    return f" (img_id {entry['img_id']!r:.80})" if isinstance(entry, dict) and "img_id" in entry else ""


def _checked_size(size, path, key):
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):
        raise DataError(f"{path}: {key!r} must be [height, width] in pixels, not {size!r:.60}")
    return size


def _index_type(count):
    return np.uint16 if count <= 1 << 16 else np.int32
