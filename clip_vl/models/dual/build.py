"""From a `DualSpec` to a dual encoder: towers, heads, weights, and what is frozen."""

import hashlib
import math
from pathlib import Path

import torch
from torch import nn

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.random import derive_seed
from clip_vl.models.dual.encoder import CachedTower, DualEncoder
from clip_vl.models.dual.heads import PrototypeLayer, build_head, joint_dim
from clip_vl.models.dual.settings import (
    check_tokens,
    read_dual_settings,
    restore_pixels,
    say_assumed,
    vocabulary_of,
)
from clip_vl.models.dual.spec import LossNeeds
from clip_vl.models.loading.settings import Settings
from clip_vl.models.loading.state_dicts import is_archive, read_state_dict
from clip_vl.models.loading.weights import load_weights
from clip_vl.models.towers.image import build_image_tower
from clip_vl.models.towers.text import build_text_tower

NOTHING = LossNeeds()
SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0  # where the pairwise sigmoid starts (arXiv:2303.15343, section 3.2)


def build_dual_encoder(spec, needs=NOTHING, cached=None):
    """The `DualEncoder` of a `DualSpec`, with pretrained and loaded weights, frozen as it says.

    needs:  a `LossNeeds`
    cached: {"image" or "text": `CachedTower`} instead of the tower
    """
    state = read_dual_encoder(spec.load) if spec.load else {}
    settings = read_dual_settings(spec.load) if spec.load else Settings({})
    image, text = ((cached or {}).get(side) or build_tower(side, spec, state, settings) for side in ("image", "text"))
    heads = _build_heads(image, text, spec)
    model = DualEncoder(image, text, *heads, **_additions(text, heads[0].width, spec.temperature, needs))
    if spec.load:
        load_dual_encoder(model, state, spec)
        check_tokens(model, settings)
        if not settings.found:
            say_assumed(spec.load, model.image_tower, model.text_tower)
    if needs.one_way or any(tower.locked or tower.locked_parts for tower in (spec.image, spec.text)):
        from clip_vl.models.dual.locks import freeze

        freeze(model, spec, needs.one_way)
    model.two_texts = needs.two_texts
    return model


def open_dual_encoder(spec, device):
    """The dual encoder of a `DualSpec`, ready to encode."""
    return build_dual_encoder(spec, LossNeeds(scale=True)).to(device, memory_format=torch.channels_last).eval()


def build_tower(side, spec, state=None, settings=None):
    """The "image" or the "text" tower of a `DualSpec`; its first weights depend on the seed and on nothing else.

    state, settings: of the checkpoint that will be loaded; they decide what the spec leaves open
    """
    torch.manual_seed(derive_seed(spec.seed, f"{side} tower"))
    state, settings = state or {}, settings or Settings({})
    if side == "image":
        return _build_image_tower(spec.image, state, settings)
    tower = _build_text_tower(spec.text, state, settings)
    if spec.text.adapter:
        trained = sum(parameter.numel() for parameter in tower.parameters() if parameter.requires_grad)
        dist.print0(f"--adapter {spec.text.adapter}: {trained:,} parameters of the text tower train")
    return tower


def _build_image_tower(tower, state, settings):
    resolution = tower.resolution
    if not resolution and tower.builder == "clip":
        from clip_vl.models.towers.image_clip import resolution_of

        resolution = resolution_of(tower.name, state)
    of_weights, common = _weights(tower, state, 0)
    built = build_image_tower(tower.builder, tower.name, resolution=resolution, checkpointing=tower.checkpointing,
                              **common)  # fmt: skip
    for found in (of_weights, settings):
        built = restore_pixels(built, found) if "pixels" in found.values else built
    if state and tower.builder == "openclip" and not (common["tag"] or settings.found):
        from clip_vl.models.dual.foreign import describe_as_published

        built = describe_as_published(built, tower.name)
    if tower.weights and not (common["tag"] or of_weights.found or is_archive(tower.weights)):
        say_assumed(tower.weights, built)
    return built


def _build_text_tower(tower, state, settings):
    vocab = vocabulary_of(settings, tower.vocab, tower.vocab_counts) or tower.vocab
    return build_text_tower(
        tower.builder, tower.name, pooler=tower.pooler, max_length=tower.max_length, vocab=vocab, prompt=tower.prompt,
        n_prompt=tower.n_prompt, adapter=tower.adapter, **_weights(tower, state, 1)[1],
    )  # fmt: skip


def _weights(tower, state, index):
    """(`Settings` of the file of weights, arguments that both kinds of builders take).

    index: of this tower in a checkpoint's quick_gelu
    """
    tag = tower.tag or ("openai" if tower.pretrained and tower.builder in ("clip", "openclip") else "")
    is_file = tower.weights and Path(tower.weights).is_file()
    of_weights = read_dual_settings(tower.weights) if is_file else Settings({})
    recorded = state.get("quick_gelu", of_weights.values.get("quick_gelu", (0, 0)))
    return of_weights, {
        "tag": tag if tower.pretrained or tower.weights else "",  # a tower from scratch has no statistics of others
        "pretrained": tower.pretrained,
        "weights": tower.weights,
        "cache_dir": tower.cache_dir,
        "quick_gelu": bool(recorded[index]) if tower.quick_gelu is None else tower.quick_gelu,
    }


def _build_heads(image, text, spec):
    """(image head, text head), of the widths that the towers and the joint width allow."""
    layers = (spec.image.head_layers, spec.text.head_layers)
    width = joint_dim(image.width, text.width, *layers, spec.joint_width)
    torch.manual_seed(derive_seed(spec.seed, "heads"))
    return tuple(build_head("dino", tower.width, n, width) for tower, n in zip((image, text), layers))


def _additions(text_tower, width, temperature, needs):
    """{name: module or parameter} that the loss needs. width: of the joint space"""
    found = {}
    if needs.scale:
        own = getattr(text_tower, "initial_logit_scale", None)
        start = math.log(1 / temperature) if own is None else own
        found["logit_scale"] = nn.Parameter(torch.tensor(math.log(SIGLIP_SCALE) if needs.bias else start))
    if needs.bias:
        found["logit_bias"] = nn.Parameter(torch.tensor(SIGLIP_BIAS))
    if needs.prototypes:
        found["prototypes"] = PrototypeLayer(width, needs.prototypes)
    if needs.projection:
        shape = (width, needs.projection.layers, needs.projection.width, needs.projection.hidden)
        found["text_projection"] = build_head("protoclip", *shape)
        found["image_projection"] = build_head("protoclip", *shape)
        found["image_projection"].load_state_dict(found["text_projection"].state_dict())
        found["prototype_scale"] = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    return found


def read_dual_encoder(path):
    """The state of a whole dual encoder: an epoch_N.pt of ours, or a file with open_clip's or OpenAI's names, whose
    archives have OpenAI's GELU.
    """
    state = read_state_dict(path, "--load takes a whole dual encoder, such as snap/align/NAME/epoch_32.pt")
    if not any("_tower." in name for name in state):
        from clip_vl.models.dual.foreign import to_our_names

        state = to_our_names(state, path)
    return state


def load_dual_encoder(model, state, spec):
    """Load what `read_dual_encoder` read of `spec.load`; the GELU stays the one that the model was built with."""
    path = spec.load
    state = dict(state, quick_gelu=model.quick_gelu)
    if "openclip" in (spec.image.builder, spec.text.builder):
        from clip_vl.models.dual.foreign import to_inner_names

        state = to_inner_names(state, model)
    state = fit_positions(state, model, path)
    absent = []
    for side in ("image", "text"):
        if not any(name.startswith(f"{side}_tower.") for name in state):  # trained from a cache of a frozen tower
            if not (getattr(spec, side).pretrained or getattr(spec, side).weights):
                raise UserError(
                    f"{path} has no {side} tower, whose features were cached: say where its weights are, "
                    f"with --pretrained_{side}_model or --{side}_weights"
                )
            absent.append(f"{side}_tower.")
    cached = tuple(
        f"{side}_tower." for side in ("image", "text") if isinstance(getattr(model, f"{side}_tower"), CachedTower)
    )
    new = (*absent, "prototypes.", "image_projection.", "text_projection.", "prototype_scale", "logit_scale",
           "logit_bias")  # fmt: skip
    unwanted = tuple(key for key in state if key.startswith(new) and key not in model.state_dict())
    hint = "--image_model, --text_model and --image_resolution say what is built"
    load_weights(model, state, new=new, ignore=(*cached, *unwanted), source=path, hint=hint)


def fit_positions(state, model, path):
    """The state with its image tower's table of positions resized to the model's grid; prints a line."""
    own = model.state_dict()
    parts = ("image_tower.", "image_tower.attnpool.", "image_tower.model.", "image_tower.model.attnpool.")
    for name in (f"{part}positional_embedding" for part in parts):
        cells, wanted = len(state.get(name, ())), len(own.get(name, ()))
        if cells and wanted and cells != wanted:
            from clip_vl.models.clip.vit import resize_positions

            side = round((wanted - 1) ** 0.5)
            dist.print0(f"{path}: positions of {cells - 1} cells resized to the {side} x {side} of --image_resolution "
                        f"{model.image_tower.resolution}")  # fmt: skip
            state[name] = resize_positions(state[name].float(), side, side)
    return state


def frozen_digest(tower):
    """What the features of a frozen tower depend on, for the keys of caches: class, weights, pixels, pooler."""
    digest = hashlib.sha256()
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    names = ("resolution", "interpolation", "crop", "short_side", "mean", "std", "pooler", "context_length")
    return f"{type(tower).__name__} {digest.hexdigest()} {[getattr(tower, name, None) for name in names]}"
