"""Published weights that are already on this machine: found by name, never fetched, and loaded whole."""

import os
from pathlib import Path

import torch

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.activations import openclip_tag
from clip_vl.models.loading.weights import load_weights

OPENCLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")


def find_file(what, paths, source, hub="", files=(), cache_dir=None):
    """The first file of a published model that is on this machine.

    what, source:   for the error: the model, and where it is published
    paths:          paths to look at, the first of which the error advises
    hub, files:     a repository on the Hugging Face hub and the names of its weights, looked for in the hub's cache
    cache_dir:      another folder of that cache's form
    """
    cached = (_in_hub_cache(hub, name, folder) for name in files for folder in (None, cache_dir)) if hub else ()
    found = next((Path(path) for path in (*paths, *cached) if path and Path(path).is_file()), None)
    if found is None:
        raise UserError(
            f"the weights of {what} are not on this machine: put {source} at {paths[0]}, "
            "or give the path of the file as weights"
        )
    return found


def _in_hub_cache(repository, name, cache_dir):
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(repository, name, cache_dir=cache_dir)
    return path if isinstance(path, str) else None


def published_file(what, folder, cache_dir, url="", hub="", files=()):
    """The local file of weights published at a url or on the hub: in cache_dir, in `folder` or in the hub's cache.

    A url's file keeps its name. The hub's files are all named alike, so a repository's stand in a folder of its name.
    """
    names = [url.rpartition("/")[2]] if url else []
    names += [f"{hub.rpartition('/')[2]}/{file}" for file in files] if hub else []
    paths = [Path(parent) / name for parent in (cache_dir, folder) if parent for name in names]
    source = url or f"{files[0]} of https://huggingface.co/{hub}"
    return find_file(what, paths, source, hub, files, cache_dir)


def openclip_file(name, tag, cache_dir=None):
    """The local file of open_clip's published weights: in cache_dir, its own cache or the hub's."""
    if not tag:
        raise UserError(f"pretrained weights of {name} need a tag, such as openai, or a file as weights")
    entry = openclip_tag(name, tag)
    hub, _, file = entry.get("hf_hub", "").rpartition("/")
    files = (str(Path(file).with_suffix(".safetensors")), file) if file else OPENCLIP_FILES
    folder = Path(os.path.expanduser("~/.cache/clip"))  # noqa: PTH111 Path's own fails without a home
    return published_file(f"{name} ({tag})", folder, cache_dir, entry.get("url", ""), hub, files)


def load_tower(model, state, source, ignore=()):
    """Load a state dict into a tower; every name and shape must match, but for `ignore` and BatchNorm's counters."""
    counters = {key: torch.tensor(0) for key in model.state_dict() if key.endswith("num_batches_tracked")}
    table = load_weights(model, counters | state, ignore=ignore, allow_partial=True, source=source)
    if table:
        raise UserError(f"{source} does not fit:", *table.split("\n"))
