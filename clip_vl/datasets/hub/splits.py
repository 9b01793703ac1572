"""Which rows of a Hugging Face data set on disk belong to a split: that of a saved dictionary of splits, of files named
by their split, or of a table with a column for it. Without a name it is the training split, or the only one.
"""

import re
from pathlib import Path

from clip_vl.datasets.storage.cache import writable_root
from clip_vl.engine.errors import DataError, UserError

SPLIT_COLUMN = "split"  # of strings, in published forms of Flickr30k and COCO with all splits in one table
SHARD = re.compile(r"(\w+)-\d+-of-\d+")  # train-00000-of-00003


def is_hub_folder(folder):
    return any(Path(folder).glob("*.parquet")) or any(Path(folder).glob("*.arrow")) or _is_saved(folder)


def _is_saved(folder):
    return Path(folder, "state.json").is_file() or Path(folder, "dataset_dict.json").is_file()


def load_rows(folder, split, cache_root):
    """The memory-mapped rows of the split, without a look at anything but the files of the folder."""
    import datasets

    try:
        if _is_saved(folder):
            data = datasets.load_from_disk(str(folder))
            return (
                _split_of(folder, data, split) if isinstance(data, datasets.DatasetDict) else _rows(folder, data, split)
            )
        if files := sorted(folder.glob("*.arrow")):
            files, split = _files_of_split(folder, files, split)
            data = datasets.concatenate_datasets([datasets.Dataset.from_file(str(file)) for file in files])
        else:
            files, split = _files_of_split(folder, sorted(folder.glob("*.parquet")), split)
            cache = str(writable_root(cache_root) / "parquet")
            data = datasets.Dataset.from_parquet(list(map(str, files)), cache_dir=cache)
        return _rows(folder, data, split)
    except UserError:
        raise
    except Exception as error:  # foreign files: the library raises anything
        raise DataError(f"{folder} cannot be read as a data set: {str(error) or type(error).__name__}") from error


def _split_of(folder, data, split):
    _check_split(folder, split, list(data))
    return data[split or "train"]


def _check_split(folder, split, known):
    if (split or "train") not in known:
        raise UserError(f"{folder} has no split {split or 'train'!r}; it has {', '.join(known)}: write {folder}@SPLIT")


def _files_of_split(folder, files, split):
    """(the files of the split, the split where it is still to be found in the rows), by names such as
    test-00000-of-00001.parquet; all files where they are of one split, which needs no name.
    """
    found = [SHARD.fullmatch(file.stem) for file in files]
    known = list(dict.fromkeys(match[1] for match in found)) if all(found) else []
    if len(known) < 2 and split not in known:
        return files, split
    _check_split(folder, split, known)
    return [file for file, match in zip(files, found) if match[1] == (split or "train")], None


def _rows(folder, data, split):
    """The rows of a split by the column that names it. UserError where a split is asked for and no column names any."""
    import datasets
    import numpy as np

    if SPLIT_COLUMN in data.column_names and data.features[SPLIT_COLUMN] == datasets.Value("string"):
        of_rows = np.array(data[SPLIT_COLUMN][:])
        known = sorted(set(of_rows.tolist()))
        if len(known) == 1 and not split:
            return data
        _check_split(folder, split, known)
        return data.select(np.flatnonzero(of_rows == (split or "train")))
    if split:
        raise UserError(f"{folder}@{split}: nothing in it names the splits of its rows; leave out @{split}")
    return data
