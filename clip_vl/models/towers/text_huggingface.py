"""Text towers of Hugging Face encoders (BERT, RoBERTa and their like), pretrained or not, with four poolers."""

import torch
from torch import nn

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.loading.hf_files import load_config, load_tokenizer, local_folder, reading
from clip_vl.models.towers.hf_attention import attention_of, cheapen_dropout
from clip_vl.models.towers.hf_tokens import HuggingFaceTokenizer, first_position
from clip_vl.models.towers.prompt_bert import PromptBertTower

POOLERS = ("cls", "cls_before_pooler", "mean", "PromptBERT")


def build_hf_tower(name, *, pretrained=False, pooler="cls", max_length=77, cache_dir=None, weights=None, adapter=None):
    """A folder, or a name found in the cache; arguments as for `build_text_tower`."""
    if pooler not in POOLERS:
        raise UserError(f"text pooler {pooler!r} is none of {', '.join(POOLERS)}")
    folder = local_folder(name, cache_dir)
    config = load_config(folder)
    model = _pretrained(folder, config, pooler) if pretrained and not weights else _from_config(folder, config)
    model = _encoder(model, pooler, folder)
    tower = _tower(model, load_tokenizer(folder), pooler, max_length)
    if weights:
        _load(model, weights, pooler)
    if adapter:
        from clip_vl.models.dual.adapters import add_adapter

        add_adapter(model, adapter)
    return tower


def _model_class(folder, config):
    from transformers import MODEL_MAPPING

    found = MODEL_MAPPING.get(type(config), None)
    if found is None:
        raise UserError(f"{folder}: no text encoder is known for its model type {config.model_type!r}")
    return found[0] if isinstance(found, tuple) else found


def _from_config(folder, config):
    from transformers import AutoModel

    attention = attention_of(_model_class(folder, config))
    with reading(folder, "config.json"):
        return AutoModel.from_config(config, attn_implementation=attention, trust_remote_code=False)


def _pretrained(folder, config, pooler):
    """The published weights: every one of the model must be in the file, but for a pooler that is not used."""
    model_class = _model_class(folder, config)
    with reading(folder, "weights (model.safetensors or pytorch_model.bin)"):
        model, report = model_class.from_pretrained(
            folder, config=config, local_files_only=True, trust_remote_code=False, output_loading_info=True,
            attn_implementation=attention_of(model_class), dtype=torch.float32,
        )  # fmt: skip
    missing = sorted(key for key in report["missing_keys"] if pooler == "cls" or not key.startswith("pooler."))
    if missing and all(key.startswith("pooler.") for key in missing):
        raise UserError(f"{folder} has no weights of a pooler: pass --text_pooler mean or cls_before_pooler")
    if missing:
        raise DataError(
            f"{folder}: its weights lack {missing[0]} and {len(missing) - 1} more of the model; fetch it again"
        )
    return model


def _encoder(model, pooler, folder):
    """The encoder alone, without a pooler that no feature passes."""
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.encoder
    if pooler != "cls":
        if getattr(model, "pooler", None) is not None:
            model.pooler = None
    elif getattr(model, "pooler", None) is None:
        raise UserError(
            f"{folder}: a {model.config.model_type} has no pooler: pass --text_pooler mean or cls_before_pooler"
        )
    return cheapen_dropout(model)


def _tower(model, tokenizer, pooler, max_length):
    max_length = min(max_length, _positions(model.config))
    if pooler == "PromptBERT":
        return PromptBertTower(model, tokenizer, max_length)
    return HuggingFaceTower(model, HuggingFaceTokenizer(tokenizer, max_length), pooler)


def _positions(config):
    """How many tokens the position table has room for; RoBERTa's begins behind the padding's id."""
    positions = getattr(config, "max_position_embeddings", None) or 512
    return positions - first_position(config)


def _load(model, path, pooler):
    """Load a file of this encoder's weights; the heads of the model it came from are left out."""
    from clip_vl.models.loading.state_dicts import read_state_dict
    from clip_vl.models.loading.weights import load_weights

    prefix = model.base_model_prefix + "."
    state = read_state_dict(path)
    if any(key.startswith(prefix) for key in state):
        state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    ignore = ("cls.", "lm_head.", *(() if pooler == "cls" else ("pooler.",)))
    table = load_weights(model, state, ignore=ignore, allow_partial=True, source=path)
    if table:
        raise UserError(f"{path} does not fit the text tower:", *table.split("\n"))


class HuggingFaceTower(nn.Module):
    """An encoder and a pooler.

    cls:               what the encoder's own pooler makes of the first token
    cls_before_pooler: the first token's last state
    mean:              the mean of the last states of the tokens that are not padding
    """

    initial_logit_scale = None

    def __init__(self, model, tokenizer, pooler):
        super().__init__()
        self.model, self.tokenizer, self.pooler = model, tokenizer, pooler
        self.width = model.config.hidden_size
        self.context_length = tokenizer.max_length

    def tokenize(self, texts, rng=None):
        return self.tokenizer(texts, rng)

    def forward(self, tokens):
        """tokens: dict of input_ids, attention_mask (B, L), 1 keep, 0 padding -> (B, width), not L2-normalised."""
        outputs = self.model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        if self.pooler == "cls":
            return outputs.pooler_output
        if self.pooler == "cls_before_pooler":
            return outputs.last_hidden_state[:, 0]
        return masked_mean(outputs.last_hidden_state, tokens["attention_mask"])


def masked_mean(states, keep):
    """states: (B, L, D), keep: (B, L), 1 or 0 -> (B, D), the mean over the kept."""
    keep = keep.unsqueeze(-1).to(states.dtype)
    return (states * keep).sum(1) / keep.sum(1).clamp(min=1)
