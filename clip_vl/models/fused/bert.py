"""BERT (arXiv:1810.04805): embeddings, post-norm layers and pooler, under the published parameter names."""

import dataclasses
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine.errors import DataError, UserError
from clip_vl.engine.readers.json_files import parse_json
from clip_vl.models.attention import attend
from clip_vl.models.dropout import Dropout

DROPPED = -10000.0  # added to the attention scores of keys that must not be seen


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT encoder, named as in its config.json; the defaults are bert-base-uncased."""

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    initializer_range: float = 0.02  # suits width 768; a narrow model needs about 1 / sqrt(width)

    @classmethod
    def from_folder(cls, folder, hint=""):
        """Read <folder>/config.json; `hint` ends the error for a missing file (which flag points to the folder)."""
        path = Path(folder) / "config.json"
        if not path.is_file():
            raise UserError(
                f"{path} is missing: put config.json, vocab.txt and model.safetensors of a BERT model there, "
                f"for example from https://huggingface.co/google-bert/bert-base-uncased. {hint}".rstrip()
            )
        try:
            values = parse_json(path.read_bytes())
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON ({error}); fetch it again") from error
        if not isinstance(values, dict):
            raise DataError(f"{path} must hold one JSON object with BERT's sizes, not a {type(values).__name__}")
        return cls.from_dict(values, source=path)

    @classmethod
    def from_dict(cls, values, source):
        """Take the known names from a config.json's object; refuse other architectures. `source` names the file."""
        for key, wanted in (("hidden_act", "gelu"), ("position_embedding_type", "absolute")):
            if values.get(key, wanted) != wanted:
                raise UserError(f"{source}: {key} is {values[key]!r}, but these BERT layers have {wanted!r} only")
        for field in dataclasses.fields(cls):
            value = values.get(field.name, field.default)
            accepted = (int, float) if field.type is float else int
            if not isinstance(value, accepted) or isinstance(value, bool) or value < 0:
                raise DataError(f"{source}: {field.name} must be a number of type {field.type.__name__}, not {value!r}")
        config = cls(**{f.name: values[f.name] for f in dataclasses.fields(cls) if f.name in values})
        if config.num_attention_heads < 1 or config.hidden_size % config.num_attention_heads:
            raise DataError(
                f"{source}: hidden_size {config.hidden_size} must be a multiple of num_attention_heads "
                f"{config.num_attention_heads}"
            )
        return config


def attention_bias(keep):
    """Additive bias (B, 1, 1, L) from `keep` (B, L): 1 or True keeps a key, 0 or False drops it."""
    return (keep[:, None, None, :] == 0) * DROPPED


class BertEmbeddings(nn.Module):
    """Word + position + type, LayerNorm, dropout.

    Row 0 of all three tables is a padding row: lookups give it no gradient. So position 0 and type 0, the only type
    in use, move by weight decay alone, as they did in the published models.
    """

    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, D, padding_idx=0)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, D, padding_idx=0)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, D, padding_idx=0)
        self.LayerNorm = nn.LayerNorm(D, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, input_ids):
        """input_ids: (B, L) -> (B, L, D)."""
        positions = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word_embeddings(input_ids) + self.position_embeddings(positions)
        return self.dropout(self.LayerNorm(x + self.token_type_embeddings(torch.zeros_like(positions))))


class BertSelfAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        D = config.hidden_size
        self.heads = config.num_attention_heads
        self.query, self.key, self.value = nn.Linear(D, D), nn.Linear(D, D), nn.Linear(D, D)
        self.dropout = config.attention_probs_dropout_prob

    def forward(self, x, bias, context=None):
        """x: (B, L, D), bias as in `attend`; context: what to look at instead of x, (B, M, D) -> (B, L, D)."""
        context = x if context is None else context
        query, key, value = (
            linear(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for linear, source in ((self.query, x), (self.key, context), (self.value, context))
        )  # (B, heads, L or M, d) each
        context = attend(query, key, value, bias, self.dropout if self.training else 0.0)
        return context.transpose(1, 2).flatten(2)


class BertOutput(nn.Module):
    """LayerNorm(residual + dropout(dense(x))): how both halves of a layer end."""

    def __init__(self, config, input_size):
        super().__init__()
        self.dense = nn.Linear(input_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, x, residual):
        return self.LayerNorm(residual + self.dropout(self.dense(x)))


class BertAttention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self = BertSelfAttention(config)
        self.output = BertOutput(config, config.hidden_size)

    def forward(self, x, bias):
        return self.output(self.self(x, bias), x)


class BertIntermediate(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, x):
        return F.gelu(self.dense(x))


class BertLayer(nn.Module):
    """Self-attention, then a feed-forward network, each closed by a residual and a LayerNorm."""

    def __init__(self, config):
        super().__init__()
        self.attention = BertAttention(config)
        self.intermediate = BertIntermediate(config)
        self.output = BertOutput(config, config.intermediate_size)

    def forward(self, x, bias=None):
        """x: (B, L, D), bias as in `attend` -> (B, L, D)."""
        x = self.attention(x, bias)
        return self.output(self.intermediate(x), x)


class BertPooler(nn.Module):
    """The first token through one linear layer; BERT and LXMERT squash it with tanh, CLIP-ViL does not."""

    def __init__(self, config, tanh=False):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.tanh = tanh

    def forward(self, x):
        """x: (B, L, D) -> (B, D)."""
        pooled = self.dense(x[:, 0])
        return pooled.tanh() if self.tanh else pooled


def init_weights(module, std=0.02):
    """BERT's: Linear and Embedding N(0, std), zero biases, identity LayerNorms.

    The convolutions and batch norms of the visual tower keep what they have: it may be CLIP's already.
    """
    for part in module.modules():
        if isinstance(part, (nn.Linear, nn.Embedding)):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.LayerNorm):
            nn.init.ones_(part.weight)
        if isinstance(part, (nn.Linear, nn.LayerNorm)):
            nn.init.zeros_(part.bias)
