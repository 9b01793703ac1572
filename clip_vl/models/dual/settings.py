"""The settings of a dual encoder's checkpoint: towers and heads by name, pixels, activation, vocabulary, lengths."""

import hashlib
import json
from dataclasses import fields

from clip_vl.engine import dist
from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.dual.encoder import CachedTower
from clip_vl.models.loading.settings import assumed, read_settings, recall
from clip_vl.models.towers.pixels import Pixels, describe

SENTENCES = ("A cat's 2 hats, É!", "dog")  # by whose tokens a tokenizer is recognised
TRAINED_WITH = ("train_data", "train_negatives", "dataset_size", "loss", "epochs", "batch_size", "lr")  # for cards

BUILT_FROM = ("image_model_builder", "image_model", "image_model_tag", "image_resolution", "image_head_n_layers",
              "text_model_builder", "text_model", "text_model_tag", "text_vocab", "text_pooler", "max_seq_length",
              "text_head_n_layers", "prompt", "n_prompt", "adapter", "joint_projection_dim", "temperature",
              "force_quick_gelu", "image_crop")  # fmt: skip
RENAMED = {"logit_scale": "temperature"}  # settings that have another name in older files
LARGEST = {"image_resolution": 8192, "resolution": 8192, "short_side": 16384, "image_head_n_layers": 64,
           "text_head_n_layers": 64, "joint_projection_dim": 65536, "max_seq_length": 65536}  # fmt: skip


def dual_settings(flags, model):
    """JSON values for the checkpoint of a `DualEncoder` that was trained with these flags, {name: value}."""
    names = [*BUILT_FROM, *(name for side in ("image", "text") for name in _sources(side, model))]
    values = {name: flags[name] for name in names if name in flags} | {"quick_gelu": model.quick_gelu.tolist()}
    values["trained_with"] = {name: flags[name] for name in TRAINED_WITH if flags.get(name) is not None}
    tower = model.image_tower
    if hasattr(tower, "resolution"):
        pixels = {field.name: getattr(tower, field.name) for field in fields(Pixels)}
        values["pixels"] = pixels | {"crop": flags.get("image_crop") or tower.crop}
    if flags.get("text_vocab"):
        values["vocabulary"] = list(getattr(model.tokenizer, "tokens", None) or _words_of(flags["text_vocab"]))
    if model.tokenizer is not None:
        values["tokens"] = digest_of_tokens(model.tokenizer)
    return values


def _sources(side, model):
    """The flags that name the weights of a tower that is not in the checkpoint, because its features were cached."""
    cached = isinstance(getattr(model, f"{side}_tower"), CachedTower)
    return (f"pretrained_{side}_model", f"{side}_weights", f"{side}_model_tag") if cached else ()


def read_dual_settings(path):
    """`read_settings`, and DataError where what is no flag has not the form of `dual_settings`."""
    settings = read_settings(path)
    settings = settings._replace(values={RENAMED.get(name, name): value for name, value in settings.values.items()})
    pixels, quick, words = (settings.values.get(name) for name in ("pixels", "quick_gelu", "vocabulary"))
    whole = pixels is None or (isinstance(pixels, dict) and isinstance(pixels.get("resolution"), int))
    whole &= quick is None or (isinstance(quick, list) and len(quick) == 2 and all(one in (0, 1) for one in quick))
    whole &= words is None or (isinstance(words, list) and all(isinstance(word, str) for word in words))
    sizes = {**settings.values, **(pixels if isinstance(pixels, dict) else {})}
    whole &= all(sizes[name] <= most for name, most in LARGEST.items() if isinstance(sizes.get(name), int))
    if not whole:
        raise DataError(f"{path}: its settings of sizes, activation or vocabulary cannot be used; is it damaged?")
    return settings


def _cached_sources(values):
    """The same flags, of a checkpoint's settings or of an older run's flags."""
    if "cache_teacher" not in values:
        return tuple(name for name in values if name.startswith("pretrained_") or name.endswith("_weights"))
    side = "text" if values.get("lock_text_model") else "image"
    return (f"pretrained_{side}_model", f"{side}_weights") if values["cache_teacher"] else ()


def recall_dual(settings, flags, given):
    """{name: value} of the flags that the command line leaves open; prints flags that contradict the file."""
    names = [*(name for name in BUILT_FROM if name != "text_vocab"), *_cached_sources(settings.values)]
    values, notes = recall(flags, given, settings, names)
    vocab = settings.values.get("text_vocab")
    if "text_vocab" not in given and isinstance(vocab, str):
        values["text_vocab"] = vocab
    elif vocabulary_of(settings, flags.get("text_vocab"), True) is None and settings.values.get("vocabulary"):
        notes.append(f"--text_vocab {flags['text_vocab']} has other words than {settings.path} was trained with; the "
                     "flag is used")  # fmt: skip
    trained = (settings.values.get("pixels") or {}).get("resolution")
    side = flags.get("image_resolution")
    if "image_resolution" in given and settings.values.get("image_resolution") is None and trained not in (None, side):
        notes.append(f"--image_resolution {side} is given, but {settings.path} was trained with {trained}; the flag is "
                     "used")  # fmt: skip
    quick = any(settings.values.get("quick_gelu", ())) and not settings.values.get("force_quick_gelu")  # by its name
    if quick and "force_quick_gelu" in given and not flags["force_quick_gelu"]:
        notes.append(f"--no-force_quick_gelu is given, but {settings.path} was trained with QuickGELU;"
                     " the flag is used")
    for note in notes:
        dist.print0(note)
    return values


def vocabulary_of(settings, folder, is_given):
    """The words that a checkpoint holds, where they are to be used: not if --text_vocab names a folder with others."""
    words = settings.values.get("vocabulary")
    return words if words and (not is_given or _words_of(folder) == words) else None


def _words_of(folder):
    from clip_vl.models.clip.tokenizer import read_vocabulary

    return read_vocabulary(folder)


def restore_pixels(tower, settings):
    """Put the preprocessing of a checkpoint on an image tower, whose resolution may be another one."""
    try:
        pixels = Pixels(**settings.values["pixels"])
        short_side = round(pixels.short_side * tower.resolution / pixels.resolution)
        statistics = tuple(float(value) for value in (*pixels.mean, *pixels.std))
    except (TypeError, ValueError, ZeroDivisionError):
        raise DataError(f"{settings.path}: its settings of pixels cannot be read; is the file damaged?") from None
    if len(statistics) != 6 or pixels.interpolation not in ("bicubic", "bilinear"):
        raise DataError(f"{settings.path}: its settings of pixels cannot be read; is the file damaged?")
    here = Pixels(tower.resolution, statistics[:3], statistics[3:], pixels.interpolation, pixels.crop, short_side)
    return describe(tower, tower.width, here)


def check_tokens(model, settings):
    """Print a line where the text tower's tokenizer is not the one of training."""
    tokens = settings.values.get("tokens")
    if tokens and model.tokenizer is not None and digest_of_tokens(model.tokenizer) != tokens:
        dist.print0(f"the tokenizer of the text tower gives other tokens than the one that {settings.path} was trained "
                    "with; its files, or --max_seq_length, have changed")  # fmt: skip


def digest_of_tokens(tokenizer):
    """What a tokenizer makes of two sentences, as one hexadecimal number."""
    tokens = {name: value.tolist() for name, value in dict(tokenizer(list(SENTENCES))).items()}
    return hashlib.sha256(json.dumps(tokens, sort_keys=True).encode()).hexdigest()


def say_assumed(path, tower, text=None):
    """Print what is assumed of the towers of a file without settings. text: the text tower of a whole dual encoder"""
    names = {"image_resolution": "resolution", "crop": "crop", "interpolation": "interpolation", "mean": "mean",
             "std": "std", "activation": "activation"}  # fmt: skip
    values = {name: getattr(tower, attribute, None) for name, attribute in names.items()}
    values["max_seq_length"] = getattr(text, "context_length", None)
    dist.print0(assumed(path, {name: value for name, value in values.items() if value is not None}))


def refuse_without(settings):
    """UserError where a file has no settings of its towers."""
    if not settings.found:
        raise UserError(f"{settings.path} holds no settings, and no args.json is there beside it: nothing says which "
                        "towers it is of")  # fmt: skip
