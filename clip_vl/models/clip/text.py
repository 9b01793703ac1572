"""CLIP's text transformer (arXiv:2103.00020, section 2.4), under the names of OpenAI's and open_clip's checkpoints.

Causal, so what stands behind the end of a text changes nothing before it: of a padded batch only the T tokens up to the
ends are computed, packed one text after the other, and the last layer works on the end tokens alone. The features are
open_clip's.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.engine.errors import UserError, nearest
from clip_vl.models.attention import PackedProjection, attend
from clip_vl.models.clip.activations import openclip_name, resolve_quick_gelu
from clip_vl.models.clip.quick_gelu import quick_gelu
from clip_vl.models.clip.tokenizer import ClipTokenizer, WordPieceTokenizer
from clip_vl.models.loading.pretrained_files import openclip_file
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.loading.weights import load_weights

PLAIN_KEYS = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio", "no_causal_mask"}
DROPPED = -10000.0  # added to the attention scores of keys that must not be seen


@dataclass(frozen=True)
class TextConfig:
    """A text tower's shape; `embed_dim` is the width of its features."""

    embed_dim: int = 512
    width: int = 512
    layers: int = 12
    heads: int = 8
    context_length: int = 77
    vocab_size: int = 49408
    mlp_ratio: float = 4.0
    quick_gelu: bool = False


SMALL = TextConfig(embed_dim=256, width=256, layers=4, heads=4, context_length=32)
SMALL_NAMES = ("RN-tiny", "RN-micro", "ViT-tiny")  # ours, for short captions of small images


def text_config(name):
    """The TextConfig of a plain CLIP architecture: open_clip's names, OpenAI's spelling, our small ones.

    Raises UserError for unknown names and for architectures with another kind of text tower.
    """
    if name in SMALL_NAMES:
        return SMALL
    import open_clip

    config = open_clip.get_model_config(openclip_name(name))
    if config is None:
        raise UserError(
            f"{name} is no architecture of open_clip's and none of {', '.join(SMALL_NAMES)}; "
            f"open_clip.list_models() names open_clip's{nearest(name, [*SMALL_NAMES, *open_clip.list_models()])}"
        )
    if not is_plain(config):
        raise UserError(f"{name} is not a plain CLIP text tower: build it with the openclip builder")
    return plain_config(config)


def plain_config(config):
    """The TextConfig of an open_clip configuration for which is_plain holds."""
    text = {key: value for key, value in config["text_cfg"].items() if key != "no_causal_mask"}
    return TextConfig(config["embed_dim"], quick_gelu=config.get("quick_gelu", False), **text)


def is_plain(config):
    """Whether a configuration of open_clip's has the text tower that is built here."""
    text = config["text_cfg"]
    return set(text) <= PLAIN_KEYS and not text.get("no_causal_mask") and "multimodal_cfg" not in config


class ClipTextTower(nn.Module):
    """Embeddings, pre-norm blocks, the end token's feature, projected.

    vocab:    folder with a vocab.txt for WordPiece instead of CLIP's byte pairs
    n_prompt: trainable vectors after the start token (CoOp, arXiv:2109.01134); the texts' context shrinks by as many
    """

    initial_logit_scale = None  # set by those who load weights that have one

    def __init__(self, config, vocab=None, n_prompt=0):
        super().__init__()
        self.config, self.width = config, config.embed_dim
        self.context_length = config.context_length - n_prompt
        self.tokenizer = _tokenizer(vocab, self.context_length, n_prompt)
        self.ends_with_highest = vocab is None  # CLIP's end token has the highest id; WordPiece's is the last not 0
        D = config.width
        self.token_embedding = nn.Embedding(config.vocab_size if vocab is None else self.tokenizer.vocab_size, D)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, D))
        self.transformer = nn.ModuleDict({"resblocks": nn.ModuleList(TextBlock(config) for _ in range(config.layers))})
        self.ln_final = nn.LayerNorm(D)
        self.text_projection = nn.Parameter(torch.empty(D, config.embed_dim))
        self.prompt = nn.Parameter(0.02 * torch.randn(n_prompt, D)) if n_prompt else None
        self._initialise()

    def tokenize(self, texts, rng=None):
        return self.tokenizer(texts, rng)

    def forward(self, tokens):
        """tokens: {"input_ids": (B, L)}, or the (B, L) itself, padded with 0 -> (B, embed_dim), not L2-normalised."""
        ids = tokens["input_ids"] if isinstance(tokens, dict) else tokens
        ends = self._ends(ids)  # (B,)
        x = self.token_embedding(ids)
        if self.prompt is not None:
            x = torch.cat([x[:, :1], self.prompt.to(x.dtype).expand(len(x), -1, -1), x[:, 1:]], dim=1)
            ends = ends + len(self.prompt)
        x = x + self.positional_embedding[: x.shape[1]].to(x.dtype)
        packing = pack(ends, x.shape[1])
        x = packing.packed(x)
        *blocks, last = self.transformer["resblocks"]
        for block in blocks:
            x = block(x, packing)
        return self.ln_final(last(x, packing, at_ends=True)) @ self.text_projection

    def _ends(self, ids):
        return ids.argmax(dim=-1) if self.ends_with_highest else (ids != 0).sum(dim=-1) - 1

    def _initialise(self):
        """CLIP's: narrower for the matrices that write to the residual stream, by the root of their number."""
        D, layers = self.config.width, self.config.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=D**-0.5)
        for block in self.transformer["resblocks"]:
            nn.init.normal_(block.attn.in_proj_weight, std=D**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=(2 * layers * D) ** -0.5)
            nn.init.normal_(block.mlp["c_fc"].weight, std=(2 * D) ** -0.5)
            nn.init.normal_(block.mlp["c_proj"].weight, std=(2 * layers * D) ** -0.5)


def _tokenizer(vocab, context_length, n_prompt):
    if context_length < 2:
        raise UserError(f"{n_prompt} prompt vectors leave no room for a text; make --n_prompt smaller")
    return ClipTokenizer(context_length) if vocab is None else WordPieceTokenizer(vocab, context_length)


class Packing(NamedTuple):
    """Where the T tokens of B texts that count stand in their padded batch, (B, L)."""

    ends: torch.Tensor  # int64 (B,): each text's last token, in the batch
    positions: torch.Tensor  # int64 (T,): of the tokens, in the flattened batch
    last: torch.Tensor  # int64 (B,): of each text's last token, among the T
    bias: torch.Tensor  # (L, L): added to the scores of attention

    def packed(self, x):
        """(B, L, D) -> (T, D)."""
        return x.flatten(0, 1).index_select(0, self.positions)

    def padded(self, x):
        """(T, D) -> (B, L, D), zeros behind the ends."""
        B, L = len(self.ends), len(self.bias)
        return x.new_zeros(B * L, x.shape[1]).index_copy(0, self.positions, x).unflatten(0, (B, L))


def pack(ends, L):
    """The Packing of texts that end at ends, int64 (B,), in a batch of L columns."""
    positions = (torch.arange(L, device=ends.device) <= ends[:, None]).flatten().nonzero().squeeze(1)
    bias = torch.full((L, L), DROPPED, device=ends.device).triu(1)
    return Packing(ends, positions, (ends + 1).cumsum(0) - 1, bias)


class TextBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config):
        super().__init__()
        D, hidden = config.width, int(config.width * config.mlp_ratio)
        self.ln_1, self.ln_2 = nn.LayerNorm(D), nn.LayerNorm(D)
        self.attn = TextAttention(D, config.heads)
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(D, hidden), "c_proj": nn.Linear(hidden, D)})
        self.activation = quick_gelu if config.quick_gelu else F.gelu

    def forward(self, x, packing, at_ends=False):
        """x: (T, D) -> (T, D), or what stands at the texts' ends alone, (B, D)."""
        normed = self.ln_1(x)
        if at_ends:
            x = x.index_select(0, packing.last) + self.attn.at_ends(normed, packing)
        else:
            x = x + self.attn(normed, packing)
        return x + self.mlp["c_proj"](self.activation(self.mlp["c_fc"](self.ln_2(x))))


class TextAttention(PackedProjection, nn.Module):
    """Query, key and value from one matrix, under the names of `nn.MultiheadAttention`."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x, packing):
        """x: (T, D) -> (T, D)."""
        query, key, value = self._heads(packing.padded(self.project(x, 0, 3)), 3)
        return self.out_proj(packing.packed(attend(query, key, value, packing.bias).transpose(1, 2).flatten(2)))

    def at_ends(self, x, packing):
        """Outputs at the EOT positions, (B, D). Queries are the EOT positions only; keys are all tokens."""
        query = self.project(x.index_select(0, packing.last), 0, 1)
        (query,) = self._heads(query[:, None], 1)
        key, value = self._heads(packing.padded(self.project(x, 1, 3)), 2)
        return self.out_proj(attend(query, key, value, packing.bias[packing.ends][:, None, None]).flatten(1))

    def _heads(self, projected, parts):
        """(B, L, parts * D) -> parts tensors (B, heads, L, d)."""
        return projected.unflatten(-1, (parts, self.heads, -1)).permute(2, 0, 3, 1, 4)


def build_clip_text(name, *, config=None, tag="", pretrained=False, weights=None, cache_dir=None, vocab=None,
                    max_length=77, n_prompt=0, quick_gelu=False):  # fmt: skip
    """Our text tower of a plain CLIP architecture; arguments as for `build_text_tower`.

    config: a TextConfig, where it is not the one that the name stands for
    """
    config, spelt = config or text_config(name), openclip_name(name)
    if pretrained and not weights:
        weights = openclip_file(spelt, tag, cache_dir)
    quick = resolve_quick_gelu(spelt, config.quick_gelu, quick_gelu, tag, weights)
    tower = ClipTextTower(replace(config, quick_gelu=quick), vocab, n_prompt)
    if max_length < tower.context_length:
        tower.context_length = tower.tokenizer.context_length = max_length
    tower.activation = "quick_gelu" if quick else "gelu"
    if weights:
        scale = load_text_weights(tower, weights, f"{weights} (text tower {name})", new=("prompt",))
        tower.initial_logit_scale = scale
    return tower


def load_text_weights(model, path, source, new=()):
    """Load the text half of a CLIP file; returns the file's logit_scale (the log of it, as stored), or None.

    new: prefixes of the model's names that the file need not have
    """
    state = read_state_dict(path)
    scale = state.pop("logit_scale", None)
    table = load_weights(model, text_state(state), new=new, allow_partial=True, source=source)
    if table:
        raise UserError(f"{source} does not fit:", *table.split("\n"))
    return None if scale is None else float(scale)


def text_state(state):
    """The text half of a CLIP state dict, without "text."; a file of a text tower alone stays as it is."""
    prefixed = {key.removeprefix("text."): value for key, value in state.items() if key.startswith("text.")}
    others = ("visual.", "logit_bias", "text_decoder.", "input_resolution", "context_length", "vocab_size", "attn_mask")
    return prefixed or {key: value for key, value in state.items() if not key.startswith(others)}
