"""The text half of any open_clip architecture: CLIP's own kind as in clip_text.py, the others open_clip's modules."""

from pathlib import Path

import torch
from torch import nn

from clip_vl.engine.errors import DataError, UserError, nearest
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.models.clip.activations import openclip_name, resolve_quick_gelu
from clip_vl.models.clip.text import build_clip_text, is_plain, load_text_weights, plain_config
from clip_vl.models.clip.tokenizer import ClipTokenizer
from clip_vl.models.loading.hf_files import load_config, load_tokenizer, local_folder
from clip_vl.models.loading.pretrained_files import OPENCLIP_FILES, find_file, openclip_file


def build_openclip_text(name, *, tag="", pretrained=False, weights=None, cache_dir=None, max_length=77, n_prompt=0,
                        quick_gelu=False):  # fmt: skip
    """open_clip's text tower with its pooling, projection and tokenizer; arguments as for `build_text_tower`.

    name: an architecture of open_clip's, or a folder with open_clip_config.json
    """
    config = _read_config(name)
    if pretrained and not weights:
        weights = _file(name, tag, cache_dir)
    if is_plain(config):
        return build_clip_text(name, config=plain_config(config), tag=tag, weights=weights, max_length=max_length,
                               n_prompt=n_prompt, quick_gelu=quick_gelu)  # fmt: skip
    if n_prompt:
        raise UserError(f"prompt vectors are for plain CLIP text towers; {name} has another kind")
    text = config["text_cfg"]
    if text.get("hf_model_name"):
        model, pad_id = _hf_encoder(config, cache_dir)
    else:
        model, pad_id = _transformer(config, name, tag, quick_gelu, weights), None
    tower = OpenClipTextTower(model, _tokenizer(name, text, cache_dir, pad_id), config["embed_dim"])
    if weights:
        tower.initial_logit_scale = load_text_weights(model, weights, f"{weights} (text tower {name})")
    return tower


def _read_config(name):
    import open_clip

    path = Path(name) / "open_clip_config.json"
    if path.is_file():
        try:
            return parse_json(path.read_bytes())["model_cfg"]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path} is not open_clip's configuration: it has no model_cfg ({error})") from error
    spelt = openclip_name(name)
    config = open_clip.get_model_config(spelt) if spelt in open_clip.list_models() else None
    if config is None:
        raise UserError(
            f"{name} is no architecture of open_clip's (open_clip.list_models() names them) and no folder with an "
            f"open_clip_config.json{nearest(name, open_clip.list_models())}"
        )
    return config


def _file(name, tag, cache_dir):
    if Path(name).is_dir():
        return find_file(name, [Path(name) / file for file in OPENCLIP_FILES], "an open_clip checkpoint")
    return openclip_file(openclip_name(name), tag, cache_dir)


def _transformer(config, name, tag, quick_gelu, weights):
    from open_clip.model import _build_text_tower  # `create_model` would draw the image tower's weights as well

    quick_gelu = resolve_quick_gelu(openclip_name(name), config.get("quick_gelu", False), quick_gelu, tag, weights)
    return _build_text_tower(config["embed_dim"], config["text_cfg"], quick_gelu)


def _hf_encoder(config, cache_dir):
    """(open_clip's wrapper of a transformers encoder with fresh weights, the id of padding)."""
    from open_clip.hf_model import HFTextEncoder

    text = config["text_cfg"]
    settings = load_config(local_folder(text["hf_model_name"], cache_dir))
    model = HFTextEncoder(
        text["hf_model_name"], config["embed_dim"], settings, text.get("hf_pooler_type", "mean_pooler"),
        text.get("hf_proj_type", "mlp"),
    )  # fmt: skip
    if settings.is_encoder_decoder:
        model.transformer = model.transformer.encoder
    if text.get("hf_pooler_type", "mean_pooler") != "cls_pooler" and getattr(model.transformer, "pooler", None):
        model.transformer.pooler = None
    return model, settings.pad_token_id


def _tokenizer(name, text, cache_dir, pad_id):
    """open_clip's own tokenizer of an architecture; towers without a padding mask want texts of full length."""
    length = text.get("context_length", 77)
    if not text.get("hf_tokenizer_name"):
        return PaddedTokenizer(ClipTokenizer(length), length)
    from open_clip.tokenizer import HFTokenizer

    here = Path(name).is_dir() and (Path(name) / "tokenizer_config.json").is_file()
    folder = Path(name) if here else _tokenizer_folder(text["hf_tokenizer_name"], cache_dir)
    load_tokenizer(folder)  # a damaged one is one clear error
    tokenizer = HFTokenizer(str(folder), context_length=length, tokenizer_mode=text.get("tokenizer_mode"),
                            local_files_only=True, **text.get("tokenizer_kwargs", {}))  # fmt: skip
    return PaddedTokenizer(tokenizer, length, pad_id)


def _tokenizer_folder(name, cache_dir):
    """A repository of a tokenizer may hold no config.json, one of an old model no tokenizer_config.json."""
    try:
        return local_folder(name, cache_dir, "tokenizer_config.json")
    except UserError:
        return local_folder(name, cache_dir)


class PaddedTokenizer:
    """Texts to {"input_ids": (B, context_length)}; with a pad_id, columns that are all padding are dropped."""

    def __init__(self, tokenizer, context_length, pad_id=None):
        self.tokenizer, self.context_length, self.pad_id = tokenizer, context_length, pad_id

    def __call__(self, texts, rng=None):
        ids = self.tokenizer(list(texts))
        ids = ids["input_ids"] if isinstance(ids, dict) else ids
        if self.pad_id is not None:
            longest = int((ids != self.pad_id).sum(1).max())
            return {"input_ids": ids[:, :longest]}
        return {"input_ids": torch.nn.functional.pad(ids, (0, self.context_length - ids.shape[1]))}


class OpenClipTextTower(nn.Module):
    """open_clip's module behind the one call of all towers."""

    initial_logit_scale = None

    def __init__(self, model, tokenizer, width):
        super().__init__()
        self.model, self.tokenizer, self.width = model, tokenizer, width
        self.context_length = tokenizer.context_length

    def tokenize(self, texts, rng=None):
        return self.tokenizer(texts, rng)

    def forward(self, tokens):
        """tokens: {"input_ids": (B, L)} -> (B, width), not L2-normalised."""
        features = self.model(tokens["input_ids"])
        return features[0] if isinstance(features, tuple) else features  # CoCa's: pooled, tokens
