"""The settings of a fused encoder's checkpoint: taken over by a run that starts from it, and its text model checked."""

import hashlib
import json
from pathlib import Path

from clip_vl.engine import dist
from clip_vl.engine.errors import UserError
from clip_vl.engine.readers.json_files import read_object
from clip_vl.models.fused.checkpoints import checkpoint_path
from clip_vl.models.loading.settings import assumed, read_settings, recall


def bert_folder(bert, data_root):
    """The folder of the text model: --bert, or the one of the data root."""
    return Path(bert or Path(data_root) / "bert-base-uncased")


def recall_fused(stem, suffix, flags, given, names):
    """{name: value} that the checkpoint named by a stem says and the command line leaves open, `bert` among them.

    flags: {name: value} of the command line, or of what is assumed of a file without settings
    given: the names of the flags on the command line;  names: the settings to take over
    """
    settings = read_settings(checkpoint_path(stem, suffix))
    if not settings.found:
        dist.print0(assumed(settings.path, {name: flags[name] for name in names if flags.get(name) not in (None, "")}))
        return {}
    values, notes = recall(flags, given, settings, names)
    if values:
        notes.append(f"from {settings.path}: " + ", ".join(f"{name} {value}" for name, value in values.items()))
    if "bert" in flags:
        folder, note = _text_model(settings, flags, "bert" in given)
        notes += note
        if folder != bert_folder(flags["bert"], values.get("data_root", flags["data_root"])):
            values = values | {"bert": str(folder)}
    for line in notes:
        dist.print0(line)
    return values


def _text_model(settings, flags, is_given):
    """(folder of the text model, [a line about it]): without --bert the checkpoint's own, where it is there."""
    folder = bert_folder(flags["bert"], flags["data_root"])
    recorded = settings.values
    own = bert_folder(recorded.get("bert"), recorded.get("data_root", ""))
    found, digest = digest_of_bert(folder), recorded.get("bert_digest")
    if not is_given and own.is_dir() and (digest is None or found != digest):
        folder, found = own, digest_of_bert(own)
    if None in (found, digest) or found == digest:
        return folder, []
    differs = f"{folder} has other words, case or heads than the text model that {settings.path} was trained with"
    if not is_given:
        raise UserError(f"{differs} ({own}): point --bert to a copy of that folder")
    return folder, [f"{differs}; the flag --bert is used"]


def digest_of_bert(folder):
    """What a text model's folder says beside the weights' shapes: vocabulary, case, heads; None where it is no such."""
    words, config = Path(folder) / "vocab.txt", Path(folder) / "config.json"
    if not (words.is_file() and config.is_file()):
        return None
    sizes, rules = (read_object(Path(folder) / name) or {} for name in ("config.json", "tokenizer_config.json"))
    said = [sizes.get("num_attention_heads", 12), sizes.get("layer_norm_eps", 1e-12), rules.get("do_lower_case", True)]
    return hashlib.sha256(words.read_bytes().rstrip(b"\n") + json.dumps(said).encode()).hexdigest()
