"""Hugging Face models on this machine: a name or folder becomes a local folder, or one clear error; no network."""

import re
from contextlib import contextmanager
from pathlib import Path

from clip_vl.engine.errors import DataError, UserError


def local_folder(name, cache_dir=None, file="config.json"):
    """The folder of a model on this machine: the one that holds `file`.

    name: the folder, a config.json in it, or a name such as roberta-base, looked for in cache_dir (as a folder, or in
          the hub's layout) and in the hub's own cache
    """
    candidates = [Path(name).parent] if Path(name).name == "config.json" else [Path(name)]
    candidates += [Path(cache_dir) / name] if cache_dir else []
    candidates += _cached(name, cache_dir, file)
    found = next((folder for folder in candidates if (folder / file).is_file()), None)
    if found is None:
        place = Path(cache_dir or "cache/weights") / Path(name).name
        raise UserError(
            f"{name} is no folder with a {file}, and it is not in the cache; nothing is downloaded: put the model's "
            f"files (configuration, tokenizer, weights) into a folder such as {place} and give that folder"
        )
    return found


def _cached(name, cache_dir, file):
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(name)):
        return []
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(name, file, cache_dir=folder) for folder in (cache_dir, None)]
    return [Path(path).parent for path in found if isinstance(path, str)]


def load_config(folder):
    """The transformers configuration of a local folder; code in the folder never runs."""
    from transformers import AutoConfig

    with reading(folder, "config.json"):
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def load_tokenizer(folder):
    """Its tokenizer; a BERT folder may hold no more than vocab.txt."""
    from transformers import AutoTokenizer, BertTokenizerFast

    with reading(folder, "tokenizer files (tokenizer.json, or vocab.txt)"):
        try:
            return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError):
            if not (Path(folder) / "vocab.txt").is_file():
                raise
            return BertTokenizerFast.from_pretrained(folder, local_files_only=True)


@contextmanager
def reading(folder, what):
    """Whatever goes wrong in a library that reads files becomes one sentence; its own reports stay silent."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(f"{folder}: its {what} cannot be read ({type(error).__name__}: {reason})") from error
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
