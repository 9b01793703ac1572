"""Rows of a Hugging Face data set on disk, read where they lie: nothing is converted, decoded or written.

rows = HubRows(folder)                       what `save_to_disk` wrote, or a folder of parquet or arrow files
list(rows.read(["id", "caption_0"]))         dicts, in order
RowImage(folder, 7, "image_0").read_bytes()  the bytes of the image file in a row, from any process
"""

import bisect
import functools
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from clip_vl.datasets.captions.source import path_below
from clip_vl.datasets.storage.cache import sha256
from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.json_files import parse_json


class RowImage(NamedTuple):
    """An image inside a row. Its name is what messages call it."""

    folder: str
    row: int
    column: str

    def __str__(self):
        return f"{self.folder}[{self.row}].{self.column}"

    def read_bytes(self):
        """The bytes of the file in the row, or of the one below the folder that the row names. Raises OSError."""
        value = _opened(self.folder).value(self.row, self.column)
        value = {"bytes": value} if isinstance(value, bytes) else value
        if not isinstance(value, dict):
            raise OSError(0, "it is no image")
        if value.get("bytes"):
            return value["bytes"]
        try:
            return Path(self.folder, path_below(self.folder, value.get("path") or "")).read_bytes()
        except ValueError as error:
            raise OSError(0, str(error)) from None


class HubRows:
    """The rows of all files of a folder. Files are memory-mapped; of parquet the last two columns stay in memory."""

    def __init__(self, folder):
        self.folder, self.files = folder, files_of(folder)
        if not self.files:
            raise UserError(f"{folder} has no parquet or arrow files")
        try:
            self.parts = [part for path in self.files for part in _parts(path)]
        except Exception as error:  # foreign files: the library raises anything
            raise DataError(f"{folder} cannot be read as a data set: {error or type(error).__name__}") from None
        self.starts = list(accumulate((rows for rows, _ in self.parts), initial=0))
        self._column = functools.lru_cache(2)(lambda part, column: self.parts[part][1]([column]).column(column))

    def digests(self):
        """{name below the folder: sha256} of the files."""
        return {str(path.relative_to(self.folder)): sha256(path) for path in self.files}

    def read(self, columns):
        """Yield a dict of these columns for each row. DataError where one is not there."""
        for _, table in self.parts:
            try:
                yield from table(columns).to_pylist()
            except Exception as error:
                raise DataError(f"{self.folder}: {' '.join(str(error).split())}") from None

    def value(self, row, column):
        """What a row has in a column. Raises OSError."""
        part = bisect.bisect_right(self.starts, row) - 1
        try:
            return self._column(part, column)[row - self.starts[part]].as_py()
        except Exception as error:
            raise OSError(0, str(error)) from None


def files_of(folder):
    """The files of rows below a folder, in order; [] where there are none. Of several splits it is "test"."""
    folder = Path(folder)
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = parse_json((folder / "dataset_dict.json").read_bytes())["splits"]
            if len(splits) > 1 and "test" not in splits:
                raise UserError(f"{folder} has the splits {', '.join(splits)} and no test: name the folder of one")
            folder = folder / path_below(folder, "test" if "test" in splits else splits[0])
        if (folder / "state.json").is_file():
            names = [entry["filename"] for entry in parse_json((folder / "state.json").read_bytes())["_data_files"]]
            return [folder / path_below(folder, name) for name in names]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise DataError(f"{folder} is no data set as `save_to_disk` writes it: {error}") from None
    return sorted(folder.rglob("*.parquet")) or sorted(folder.glob("*.arrow"))


@functools.lru_cache(4)
def _opened(folder):
    """Once for each process; files that are mapped can be read by forks of it."""
    return HubRows(folder)


def _parts(path):
    """[(rows, function: columns -> table)] of a file: its row groups, or the whole of an arrow file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        file = pyarrow.parquet.ParquetFile(path, memory_map=True)
        return [(file.metadata.row_group(n).num_rows, functools.partial(_row_group, file, n))
                for n in range(file.num_row_groups)]  # fmt: skip
    import pyarrow

    table = pyarrow.ipc.open_stream(pyarrow.memory_map(str(path))).read_all()
    return [(table.num_rows, table.select)]


def _row_group(file, number, columns):
    if missing := sorted(set(columns) - set(file.schema_arrow.names)):
        raise DataError(f"no column {missing[0]}; the columns are {', '.join(file.schema_arrow.names)}")
    return file.read_row_group(number, columns=columns, use_threads=False)
