"""The settings of a checkpoint: what changes its scores besides its weights. They are kept inside its file.

    save_plain(path, state_dict, as_record(values))              # .pth, .pt
    save_file(state_dict, path, metadata=as_metadata(values))    # .safetensors
    settings = read_settings(path)
    values, notes = recall(flags, given, settings, names)        # what the command line leaves open

In a torch file they are one JSON record of the zip archive, beside the pickled state dict: torch.load passes over it,
so the state dict has the names that LXMERT, CLIP-ViL and open_clip expect, with strict loading too. A file of an older
version has its settings in the args.json beside it; files of other programs have none.
"""

import json
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from clip_vl.engine.errors import DataError
from clip_vl.engine.files import SETTINGS_KEY
from clip_vl.engine.readers.json_files import parse_json, read_bounded

RECORD = f"{SETTINGS_KEY}.json"


class Settings(NamedTuple):
    """values: JSON values by name;  path: of the checkpoint;  found: whether there were any"""

    values: dict
    path: str = ""
    found: bool = False


def as_record(values):
    """For `save_plain` and `write_plain`."""
    return {RECORD: json.dumps(values).encode()} if values else None


def as_metadata(values):
    """For safetensors' `save_file`."""
    return {"format": "pt"} | ({SETTINGS_KEY: json.dumps(values)} if values else {})


def read_settings(path):
    """The `Settings` of a checkpoint file, from the file itself or from the args.json beside it."""
    path = Path(path)
    if not path.is_file():
        return Settings({}, str(path))
    if text := _safetensors_metadata(path) if path.suffix == ".safetensors" else _torch_record(path):
        return Settings(_json_object(text, path), str(path), True)
    beside = path.parent / "args.json"
    if (text := read_bounded(beside)) is not None:
        flags = _json_object(text, beside).get("args")
        if not isinstance(flags, dict):
            raise DataError(f"{beside} does not hold the flags of a run; move it away, and pass the flags of the model")
        return Settings(flags, str(path), True)
    return Settings({}, str(path))


def recall(flags, given, settings, names):
    """({name: value} of the settings that the command line leaves open, [a line for each flag that contradicts them]).

    flags: {name: value} of the command line;  given: the names of the flags that it holds;  names: those to recall
    """
    values, notes = {}, []
    for name in names:
        if name not in settings.values or name not in flags or settings.values[name] == flags[name]:
            continue
        if not _fits(settings.values[name], flags[name]):
            raise DataError(f"{settings.path}: its setting {name} is {settings.values[name]!r}; is the file damaged?")
        if name in given:
            notes.append(f"--{name} {flags[name]} is given, but {settings.path} was trained with "
                         f"{settings.values[name]}; the flag is used")  # fmt: skip
        else:
            values[name] = settings.values[name]
    return values, notes


def assumed(path, values):
    """One line about a checkpoint without settings. values: {what: value} that were assumed."""
    said = ", ".join(f"{name} {value}" for name, value in values.items())
    return f"{path} holds no settings of its training; assumed: {said}"


def _fits(value, default):
    """Whether a JSON value can stand for a flag with such a value."""
    if value is None or default is None:
        return isinstance(value, str | int | float | None)
    kinds = (int, float) if isinstance(default, float) else (type(default),)
    return type(value) in kinds


def _torch_record(path):
    from clip_vl.engine.checkpoint import read_record

    return read_record(path, RECORD)


def _safetensors_metadata(path):
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get(SETTINGS_KEY)
    except (SafetensorError, OSError):  # the reader of the weights reports what is wrong
        return None


def _json_object(text, path):
    with suppress(ValueError):
        if isinstance(values := parse_json(text), dict):
            return values
    raise DataError(f"{path}: its settings are not a JSON object; move it away, and pass the flags of the model")
