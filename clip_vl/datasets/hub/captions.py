"""Hugging Face data sets on disk: what `save_to_disk` wrote, or a folder of parquet or arrow files. Nothing is fetched
and no loading script runs; images stay the bytes they are until a worker decodes them.
"""

import hashlib
from pathlib import Path

from clip_vl.datasets.captions.source import CaptionSource, is_remote, path_below
from clip_vl.datasets.captions.table import BLANK, MAX_LEFT_OUT
from clip_vl.datasets.captions.tar import quick_digest
from clip_vl.datasets.hub.splits import load_rows
from clip_vl.datasets.images.decoding import DamagedImage
from clip_vl.datasets.storage.left_out import report_left_out
from clip_vl.engine.errors import DataError, UserError

IMAGE_COLUMNS = ("image", "img", "jpg", "png", "url")
CAPTION_COLUMNS = ("caption", "captions", "text", "sentences", "txt")
LABEL_COLUMNS = ("label", "cls")


def open_hub(folder, split, options, cache_root):
    keys = options.csv_img_key, options.csv_caption_key, options.csv_label_key
    return HubSource(folder, split, *keys, cache_root, options.images_dir, options.max_left_out)


class HubSource(CaptionSource):
    """Rows of the data set in `folder`. The columns are those named, where they are there, or else the usual ones.

    max_left_out: of `report_left_out`; None: nothing is said, as of copies in loader workers
    images_dir: where files lie that rows name by their path, or by the last part of an address [the folder]
    """

    image_files = False

    def __init__(
        self, folder, split, image_key, caption_key, label_key, cache_root, images_dir=None, max_left_out=MAX_LEFT_OUT
    ):
        self.arguments = (folder, split, image_key, caption_key, label_key, cache_root, images_dir, None)
        self.folder, self.images_dir = Path(folder), images_dir and Path(images_dir)
        data = load_rows(self.folder, split, cache_root)
        self.image_column = self._column(data, image_key, IMAGE_COLUMNS, "image")
        self.caption_column = self._column(data, caption_key, CAPTION_COLUMNS, "caption")
        self.label_column = next((c for c in (label_key, *LABEL_COLUMNS) if c in data.column_names), None)
        columns = [self.image_column, self.caption_column, *([self.label_column] if self.label_column else [])]
        self.data = _undecoded(data.select_columns(columns), self.image_column)
        self.captions_only = self.data.select_columns([self.caption_column])
        self.places = None
        self.starts = self._leave_out_blanks(max_left_out)
        self.labels = self._read_labels()
        self.num_classes = 1 + max(self.labels, default=-1) if self.labels is not None else 0
        files = sorted(path for path in self.folder.rglob("*") if path.suffix in (".arrow", ".parquet"))
        self.digest = hashlib.sha256(
            repr((split, columns, len(self.data), [quick_digest(path) for path in files])).encode()
        ).hexdigest()

    def __reduce__(self):
        return type(self), self.arguments

    def _column(self, data, named, usual, what):
        found = next((column for column in (named, *usual) if column in data.column_names), None)
        if found is None:
            flag = {"image": "--csv_img_key", "caption": "--csv_caption_key"}[what]
            raise UserError(
                f"{self.folder} has no column of {what}s ({flag}); its columns are {', '.join(data.column_names)}"
            )
        return found

    def _read_labels(self):
        """The classes of all rows; None without a column of integers."""
        import numpy as np

        if self.label_column is None:
            return None
        values = self.data.with_format("numpy", columns=[self.label_column])[self.label_column][:]
        return values.astype(np.int32) if np.issubdtype(values.dtype, np.integer) else None

    def _leave_out_blanks(self, max_left_out):
        """Keep the rows with a caption, and say how many captions are left out. Returns where the captions of each row
        begin, (N + 1,), or None where each row has one; `self.places` becomes the places of those that are kept.
        """
        import numpy as np

        data = self.captions_only
        try:
            found = _captions_of(data.data.column(self.caption_column))
        except ValueError as error:  # pyarrow's, of bytes that are not UTF-8
            raise DataError(f"{self.folder}: column {self.caption_column!r} cannot be read as text: {error}") from None
        selected = slice(None) if data._indices is None else data._indices.column(0).to_numpy()
        counts, first, blanks, is_spoken = (found[name] for name in ("counts", "first", "blanks", "is_spoken"))
        counts, first, blanks = counts[selected], first[selected], blanks[selected]
        rows = np.flatnonzero(counts)
        if blanks.any():
            left = {BLANK: (int(blanks.sum()), f"row {np.flatnonzero(blanks)[0]}")}
            if max_left_out is not None:
                report_left_out(self.folder, left, int(counts.sum()), max_left_out)
            self.data, self.captions_only = self.data.select(rows), data.select(rows)
            ends = (first + counts + blanks * found["is_list"])[rows]
            self.places = [np.flatnonzero(is_spoken[a:b]) for a, b in zip(first[rows], ends)]
            self.places = np.concatenate(self.places) if len(rows) else None
        if not len(rows):
            raise DataError(f"{self.folder} holds no captioned image")
        if not found["is_list"]:
            return None
        return np.concatenate([[0], np.cumsum(counts[rows], dtype=np.int64)])

    def __len__(self):
        return len(self.data)

    def name(self, row):
        return f"{self.folder}[{row}]"

    def label(self, row):
        return -1 if self.labels is None else int(self.labels[row])

    def read(self, row):
        """The stored bytes, or the file below the folder that the row names."""
        image = self.data[row][self.image_column]
        image = {"bytes": image} if isinstance(image, bytes) else {"path": image} if isinstance(image, str) else image
        if not isinstance(image, dict):
            raise DamagedImage(self.name(row), "is no image")
        if image.get("bytes"):
            return image["bytes"]
        path = image.get("path") or ""
        if is_remote(path) and self.images_dir:  # nothing is fetched: what was downloaded has the name at its end
            path = path.rpartition("/")[2]
        root = self.images_dir or self.folder
        try:
            return (root / path_below(root, path)).read_bytes()
        except ValueError as error:
            raise DamagedImage(self.name(row), str(error)) from None
        except OSError as error:
            raise DamagedImage(self.name(row), f"cannot be read: {error.strerror}") from None

    def num_captions(self, row):
        return 1 if self.starts is None else int(self.starts[row + 1] - self.starts[row])

    def text_number(self, row, index):
        return index + (row if self.starts is None else int(self.starts[row]))

    def texts_of_first(self, rows):
        return rows if self.starts is None else int(self.starts[rows])

    def text(self, number):
        import numpy as np

        if self.starts is None:
            return self._caption(number, self.captions_only[number][self.caption_column])
        row = int(np.searchsorted(self.starts, number, side="right")) - 1
        place = number - int(self.starts[row]) if self.places is None else int(self.places[number])
        return self._caption(row, self.captions_only[row][self.caption_column][place])

    def _caption(self, row, text):
        text = text.get("raw") if isinstance(text, dict) else text
        if not isinstance(text, str):
            raise DataError(f"{self.name(row)}: {text!r:.60} is no caption (column {self.caption_column!r})")
        return text.strip()


def _captions_of(column):
    """Which captions of an arrow column are more than blanks, as dict of arrays.

    counts, blanks: (N,), captions and blank ones of each row;  first: (N,), where those of the row begin in `is_spoken`
    is_list:        whether a row has a list of captions, or one
    """
    import numpy as np
    import pyarrow.compute as pc

    is_list = str(column.type).startswith(("list", "large_list", "fixed_size_list"))
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy() if is_list else np.ones(len(column), np.int64)
    texts = pc.list_flatten(column) if is_list else column
    texts = pc.struct_field(texts, "raw") if str(texts.type).startswith("struct") else texts
    if not str(texts.type).endswith("string"):  # said of the row when it is read
        is_spoken = np.ones(len(texts), bool)
    else:
        is_spoken = pc.not_equal(pc.utf8_trim_whitespace(pc.fill_null(texts, "")), "").to_numpy()
    before = np.concatenate([[0], np.cumsum(is_spoken)])
    ends = np.cumsum(lengths)
    counts = before[ends] - before[ends - lengths]
    return {"counts": counts, "blanks": np.maximum(lengths, 1) - counts, "first": ends - lengths,
            "is_spoken": is_spoken, "is_list": is_list}  # fmt: skip


def _undecoded(data, column):
    import datasets

    if isinstance(data.features[column], datasets.Image):
        return data.cast_column(column, datasets.Image(decode=False))
    return data
