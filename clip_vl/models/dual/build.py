"""From flags to a dual encoder: towers, heads, weights, and what is frozen."""

import hashlib
import math
from pathlib import Path

import torch
from torch import nn

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.random import derive_seed
from clip_vl.models.clip.vit import resize_positions
from clip_vl.models.dual.encoder import CachedTower, DualEncoder
from clip_vl.models.dual.heads import PrototypeLayer, build_head, joint_dim
from clip_vl.models.dual.locks import lock, lock_partial
from clip_vl.models.dual.settings import (
    check_tokens,
    read_dual_settings,
    restore_pixels,
    say_assumed,
    vocabulary_of,
)
from clip_vl.models.loading.settings import Settings
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.loading.torchscript import is_archive
from clip_vl.models.loading.weights import load_weights
from clip_vl.models.towers.image import build_image_tower
from clip_vl.models.towers.image_clip import resolution_of
from clip_vl.models.towers.text import build_text_tower

SIGLIP_SCALE, SIGLIP_BIAS = 10.0, -10.0  # where the pairwise sigmoid starts (arXiv:2303.15343, section 3.2)
CLIP_CONSTANTS = ("input_resolution", "context_length", "vocab_size", "attn_mask")  # in published files, no weights


def build_dual_encoder(args, needs=frozenset(), cached=None, teacher=None):
    """The `DualEncoder` that the flags describe, with pretrained and loaded weights, frozen as they ask.

    needs:   what the losses want, among "scale", "bias", "prototypes", "projections" and "two_texts"
    cached:  {"image" or "text": `CachedTower`} in the place of the tower
    teacher: side that a one-way loss gives no gradient
    """
    state = read_dual_encoder(args.load) if args.load else {}
    settings = read_dual_settings(args.load) if args.load else Settings({})
    towers = {side: (cached or {}).get(side) or build_tower(side, args, state, settings) for side in ("image", "text")}
    heads = _build_heads(towers, args)
    model = DualEncoder(towers["image"], towers["text"], *heads, **_extras(towers, heads, args, needs))
    if args.load:
        load_dual_encoder(model, state, args.load, args)
        check_tokens(model, settings)
        if not settings.found:
            say_assumed(args.load, model.image_tower, model.text_tower)
    _freeze(model, args, teacher)
    model.two_texts = "two_texts" in needs
    return model


def open_dual_encoder(args, device):
    """The dual encoder that the flags of an evaluation describe, ready to encode."""
    return build_dual_encoder(args, {"scale"}).to(device, memory_format=torch.channels_last).eval()


def build_tower(side, args, state=None, settings=None):
    """The image or the text tower that the flags describe; its first weights depend on --seed and on nothing else.

    state, settings: of the checkpoint that will be loaded, which say what the flags do not
    """
    torch.manual_seed(derive_seed(args.seed, f"{side} tower"))
    state, settings, given = state or {}, settings or Settings({}), getattr(args, "given", frozenset())
    builder, name = getattr(args, f"{side}_model_builder"), getattr(args, f"{side}_model")
    pretrained, weights = getattr(args, f"pretrained_{side}_model"), getattr(args, f"{side}_weights")
    tag = getattr(args, f"{side}_model_tag") or ("openai" if pretrained and builder in ("clip", "openclip") else "")
    of_weights = read_dual_settings(weights) if weights and Path(weights).is_file() else Settings({})
    recorded = state.get("quick_gelu", of_weights.values.get("quick_gelu", (0, 0)))
    quick = "force_quick_gelu" not in given and bool(recorded[int(side == "text")])
    common = {
        "tag": tag if pretrained or weights else "",  # a tower from scratch has nobody's statistics or activation
        "pretrained": pretrained,
        "weights": weights,
        "cache_dir": args.cache_dir,
        "quick_gelu": args.force_quick_gelu or quick,
    }
    if side == "image":
        resolution = args.image_resolution or (resolution_of(name, state) if builder == "clip" else None)
        tower = build_image_tower(builder, name, resolution=resolution, checkpointing=args.grad_checkpointing, **common)
        for found in (of_weights, settings):
            tower = restore_pixels(tower, found) if "pixels" in found.values else tower
        if weights and not (tag or of_weights.found or is_archive(weights)):
            say_assumed(weights, tower)
        return tower
    tower = build_text_tower(
        builder,
        name,
        pooler=args.text_pooler,
        max_length=args.max_seq_length,
        vocab=vocabulary_of(settings, args.text_vocab, "text_vocab" in given) or args.text_vocab,
        prompt=args.prompt,
        n_prompt=args.n_prompt,
        adapter=args.adapter,
        **common,
    )
    if args.adapter:
        learning = sum(parameter.numel() for parameter in tower.parameters() if parameter.requires_grad)
        dist.print0(f"--adapter {args.adapter}: {learning:,} parameters of the text tower learn")
    return tower


def _build_heads(towers, args):
    """(image head, text head), of the widths that the towers and --joint_projection_dim allow."""
    layers = (args.image_head_n_layers, args.text_head_n_layers)
    widths = (towers["image"].width, towers["text"].width)
    out = joint_dim(*widths, *layers, args.joint_projection_dim)
    torch.manual_seed(derive_seed(args.seed, "heads"))
    return tuple(build_head("dino", width, n, out) for width, n in zip(widths, layers))


def _extras(towers, heads, args, needs):
    extras = {}
    if "scale" in needs:
        own = getattr(towers["text"], "initial_logit_scale", None)
        start = math.log(1 / args.logit_scale) if own is None else own
        extras["logit_scale"] = nn.Parameter(torch.tensor(math.log(SIGLIP_SCALE) if "bias" in needs else start))
    if "bias" in needs:
        extras["logit_bias"] = nn.Parameter(torch.tensor(SIGLIP_BIAS))
    width = heads[0].width
    if "prototypes" in needs:
        extras["prototypes"] = PrototypeLayer(width, args.num_prototypes)
    if "projections" in needs:
        shape = (width, args.projection_n_layers, args.projection_dim)
        extras["text_projection"] = build_head("protoclip", *shape, hidden_dim=args.projection_hidden_dim)
        extras["image_projection"] = build_head("protoclip", *shape, hidden_dim=args.projection_hidden_dim)
        extras["image_projection"].load_state_dict(extras["text_projection"].state_dict())
        extras["prototype_scale"] = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
    return extras


def read_dual_encoder(path):
    """The state of a whole dual encoder: an epoch_N.pt of ours, or a file with open_clip's or OpenAI's names, whose
    archives have OpenAI's GELU.
    """
    state = read_state_dict(path, "--load takes a whole dual encoder, such as snap/align/NAME/epoch_32.pt")
    if any(name.startswith("visual.") for name in state):
        state = dict(_our_name(name, tensor) for name, tensor in state.items() if name not in CLIP_CONSTANTS)
        quick = read_dual_settings(path).values.get("quick_gelu", [int(is_archive(path))] * 2)
        state["quick_gelu"] = torch.tensor(quick, dtype=torch.uint8)
    if not any("_tower." in name for name in state):
        found = ", ".join(ascii(name[:60])[1:-1] for name in list(state)[:3])
        raise UserError(
            f"{path} is no dual encoder's: it has no weight named image_tower. or text_tower., nor visual., but "
            f"{found} ..."
        )
    return state


def load_dual_encoder(model, state, path, args):
    """Load what `read_dual_encoder` read; OpenAI's GELU where --force_quick_gelu asks for it stays."""
    state = fit_positions(dict(state, quick_gelu=model.quick_gelu), model, path)
    absent = []
    for side in ("image", "text"):
        if not any(name.startswith(f"{side}_tower.") for name in state):  # trained from a cache of a frozen tower
            if not (getattr(args, f"pretrained_{side}_model") or getattr(args, f"{side}_weights")):
                raise UserError(
                    f"{path} has no {side} tower, whose features were cached: say where its weights are, "
                    f"with --pretrained_{side}_model or --{side}_weights"
                )
            absent.append(f"{side}_tower.")
    cached = tuple(
        f"{side}_tower." for side in ("image", "text") if isinstance(getattr(model, f"{side}_tower"), CachedTower)
    )
    new = (
        *absent,
        "prototypes.",
        "image_projection.",
        "text_projection.",
        "prototype_scale",
        "logit_scale",
        "logit_bias",
    )
    unwanted = tuple(key for key in state if key.startswith(new) and key not in model.state_dict())
    hint = "--image_model, --text_model and --image_resolution say what is built"
    load_weights(model, state, new=new, ignore=(*cached, *unwanted), source=path, hint=hint)


def fit_positions(state, model, path):
    """The state with its image tower's table of positions resized to the model's grid, which is said."""
    own = model.state_dict()
    for name in ("image_tower.positional_embedding", "image_tower.attnpool.positional_embedding"):
        cells, wanted = len(state.get(name, ())), len(own.get(name, ()))
        if cells and wanted and cells != wanted:
            side = round((wanted - 1) ** 0.5)
            dist.print0(f"{path}: positions of {cells - 1} cells resized to the {side} x {side} of --image_resolution "
                        f"{model.image_tower.resolution}")  # fmt: skip
            state[name] = resize_positions(state[name].float(), side, side)
    return state


def _our_name(name, tensor):
    if name in ("logit_scale", "logit_bias"):
        return name, tensor
    side = "image_tower." if name.startswith("visual.") else "text_tower."
    return side + name.removeprefix("visual."), tensor


def _freeze(model, args, teacher):
    for side in ("image", "text"):
        tower = getattr(model, f"{side}_tower")
        if teacher == side and not getattr(args, f"lock_{side}_model"):
            dist.print0(f"this loss teaches one way: the {side} tower gets no gradient, and is locked")
        if teacher == side or getattr(args, f"lock_{side}_model"):
            if side == "text" and args.adapter:
                raise UserError(
                    "--adapter trains in the text tower and freezes the rest of it: do not lock it as "
                    "well, nor take a loss that teaches one way with --teacher text"
                )
            lock(tower)
        if words := getattr(args, f"lock_{side}_partial"):
            lock_partial(tower, words)
    if teacher:
        lock(getattr(model, f"{teacher}_head"))


def frozen_digest(tower):
    """What the features of a frozen tower depend on, for the keys of caches: class, weights, pixels, pooler."""
    digest = hashlib.sha256()
    for name, tensor in tower.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    names = ("resolution", "interpolation", "crop", "short_side", "mean", "std", "pooler", "context_length")
    return f"{type(tower).__name__} {digest.hexdigest()} {[getattr(tower, name, None) for name in names]}"


def average_weights(model, decay):
    """A copy of the model whose weights follow an exponential moving average: `update_parameters(model)` per update."""
    from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
    average.n_averaged.fill_(1)  # the first weights count; without this the first update would replace them
    return average


def compile_towers(model):
    """torch.compile both towers in place; the names of the weights do not change."""
    for tower in (model.image_tower, model.text_tower):
        if not isinstance(tower, CachedTower):
            tower.compile()


def prepare_training(model, args, device):
    """The model on its device, compiled and with shared batch statistics as the flags ask, and wrapped."""
    if args.use_bn_sync and device.type != "cuda":
        raise UserError("--use_bn_sync is for GPUs; leave it out on CPUs")
    if args.use_bn_sync and dist.world_size() > 1:
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    if args.compile:
        compile_towers(model)
    return dist.wrap(model.to(device, memory_format=torch.channels_last), device)
