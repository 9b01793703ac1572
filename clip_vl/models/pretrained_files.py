"""Published weights that are already on this machine: found by name, never fetched, and loaded whole."""

from pathlib import Path

import torch

from clip_vl.engine.errors import UserError
from clip_vl.models.activations import openclip_tag
from clip_vl.models.weights import load_weights

OPENCLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def find_file(what, folders, url="", hub="", hub_files=()):
    """The first file found of a published model.

    what:      how the model is named in the error
    folders:   where to look for the url's file name, and for the hub's names; the first is named in the error
    url:       where it is published; only its last part counts
    hub:       a repository on the Hugging Face hub, looked for in its cache, under each of hub_files
    """
    names = [Path(url).name] if url else list(hub_files)
    places = [Path(folder) / name for folder in folders for name in names]
    cached = [] if not hub else [_in_hub_cache(hub, name, folders[0]) for name in hub_files]
    found = next((Path(path) for path in (*places, *cached) if path and Path(path).is_file()), None)
    if found is None:
        source = url or f"https://huggingface.co/{hub}"
        raise UserError(
            f"the weights of {what} are not on this machine: fetch {source} and put {' or '.join(names)} into "
            f"{folders[0]}, or give the file itself as weights"
        )
    return found


def _in_hub_cache(repository, name, cache_dir):
    from huggingface_hub import try_to_load_from_cache

    for folder in (None, cache_dir):
        path = try_to_load_from_cache(repository, name, cache_dir=folder)
        if isinstance(path, str):
            return path
    return None


def openclip_file(name, tag, cache_dir=None):
    """The local file of open_clip's published weights: in cache_dir, its own cache or the hub's."""
    if not tag:
        raise UserError(f"pretrained weights of {name} need a tag, such as openai, or a file as weights")
    entry = openclip_tag(name, tag)
    repository, _, file = entry.get("hf_hub", "").rpartition("/")
    files = (file.replace(".bin", ".safetensors"), file) if file else OPENCLIP_FILES
    folders = [cache_dir] if cache_dir else []
    folders.append(Path("~/.cache/clip").expanduser())
    return find_file(f"{name} ({tag})", folders, entry.get("url", ""), repository, files)


def load_tower(model, state, source, ignore=()):
    """Load a state dict into a tower; every name and shape must match, but for `ignore` and BatchNorm's counters."""
    counters = {key: torch.tensor(0) for key in model.state_dict() if key.endswith("num_batches_tracked")}
    table = load_weights(model, counters | state, ignore=ignore, allow_partial=True, source=source)
    if table:
        raise UserError(f"{source} does not fit:\n{table}")
