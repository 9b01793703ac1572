"""Adapters: small trainable parts inside a frozen Hugging Face text encoder of BERT's build.

    add_adapter(model, "unipelt")     # freezes the model; only the adapter trains
    adapter_parameters(model)         # how many numbers that is

LoRA and (IA)3 are peft's; the others are in adapter_layers.py. Shapes, positions and initialisations are those of the
package `adapters` 1.3, and so are outputs and parameter counts, with one difference: UniPELT's gates average over the
tokens that are not padding, so that a text's feature does not depend on the batch it is in.
"""

from torch import nn

from clip_vl.engine.errors import UserError
from clip_vl.models.dual.adapter_layers import (
    AdaptedOutput,
    AdaptedSelfAttention,
    Bottleneck,
    Gate,
    KeptTokens,
    LowRank,
    Nice,
    PhmLinear,
    PhmRule,
    Prefix,
)

BERT_LIKE = ("bert", "roberta", "xlm-roberta", "camembert")


def add_adapter(model, name):
    """Freeze a BERT-like encoder and put an adapter into it; returns the model.

    name: a key of ADAPTERS
    """
    if name not in ADAPTERS:
        raise UserError(f"--adapter {name} is none of {', '.join(ADAPTERS)}")
    kind = model.config.model_type
    if kind not in BERT_LIKE:
        raise UserError(f"--adapter {name} needs an encoder of BERT's build ({', '.join(BERT_LIKE)}), not a {kind}")
    model.requires_grad_(False)
    ADAPTERS[name](model)
    return model.train(model.training)  # new modules begin in training


def adapter_parameters(model):
    """The number of trainable parameters of an encoder with an adapter."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _bottleneck(model):
    """Houlsby's (arXiv:1902.00751): behind attention and behind the feed-forward layer, ReLU, reduction 16."""
    for layer in model.encoder.layer:
        for block in (layer.attention, layer):
            block.output = AdaptedOutput(block.output, Bottleneck.over(_width(model), 16), reads="sublayer")


def _language(model):
    """MAD-X (arXiv:2005.00052): Pfeiffer's behind the feed-forward layer, an invertible one behind the embeddings."""
    for layer in model.encoder.layer:
        layer.output = AdaptedOutput(layer.output, Bottleneck.over(_width(model), 16), reads="normed")
    model.embeddings.invertible = Nice(_width(model), reduction=2)
    model.embeddings.register_forward_hook(_invertible)


def _invertible(embeddings, args, states):
    return embeddings.invertible(states)


def _prefix(model, length=30, bottleneck=512, gated=False):
    """Prefix tuning (arXiv:2101.00190): trainable keys and values before those of the text, from a small network."""
    config = model.config
    model.prefix = Prefix(length, _width(model), bottleneck, config.num_hidden_layers, config.num_attention_heads)
    for index, layer in enumerate(model.encoder.layer):
        gate = Gate(_width(model), _kept(model)) if gated else None
        layer.attention.self = AdaptedSelfAttention(layer.attention.self, model.prefix, index, gate)


def _compacter(model):
    """Compacter (arXiv:2106.04647): the bottlenecks are sums of 4 Kronecker products, reduction 32, GELU."""
    D = _width(model)
    if D % 128:
        raise UserError(f"--adapter dummy (compacter) needs a hidden size that is a multiple of 128, not {D}")
    model.phm_rule = PhmRule(4)  # one for all layers
    for layer in model.encoder.layer:
        for block in (layer.attention, layer):
            down, up = PhmLinear(D, D // 32, model.phm_rule), PhmLinear(D // 32, D, model.phm_rule)
            block.output = AdaptedOutput(block.output, Bottleneck(down, nn.GELU(), up), reads="sublayer")


def _lora(model):
    """LoRA (arXiv:2106.09685): rank 8, alpha 16, on query and value."""
    from peft import LoraConfig, inject_adapter_in_model

    layers = r".*\.attention\.self\.(query|value)"
    inject_adapter_in_model(LoraConfig(r=8, lora_alpha=16, lora_dropout=0.0, target_modules=layers), model)


def _ia3(model):
    """(IA)3 (arXiv:2205.05638): keys, values and what enters the feed-forward layer's activation are scaled."""
    from peft import IA3Config, inject_adapter_in_model

    layers = r".*\.(attention\.self\.(key|value)|intermediate\.dense)"
    inject_adapter_in_model(IA3Config(target_modules=layers, feedforward_modules=[]), model)


def _mix_and_match(model):
    """Mix-and-match (arXiv:2110.04366): prefixes, and bottlenecks beside the feed-forward layer, times 4."""
    _prefix(model, bottleneck=800)
    for layer in model.encoder.layer:
        adapter = Bottleneck.over(_width(model), 2, scale=4.0, zero_up=True)
        layer.output = AdaptedOutput(layer.output, adapter, reads="residual")


def _unipelt(model):
    """UniPELT (arXiv:2110.07577): prefixes, Pfeiffer's bottlenecks and LoRA, each scaled by a gate over the text."""
    D = _width(model)
    model.kept_tokens = KeptTokens()
    model.register_forward_pre_hook(_remember_kept, with_kwargs=True)
    _prefix(model, length=10, gated=True)
    for layer in model.encoder.layer:
        attention = layer.attention.self
        attention.lora_query, attention.lora_value = (LowRank(D, 8, Gate(D, _kept(model))) for _ in range(2))
        adapter = Bottleneck.over(D, 16, gate=Gate(D, _kept(model)))
        layer.output = AdaptedOutput(layer.output, adapter, reads="normed")


def _remember_kept(model, args, kwargs):
    model.kept_tokens.mask = kwargs.get("attention_mask")


def _kept(model):
    return model.kept_tokens


def _width(model):
    return model.config.hidden_size


ADAPTERS = {
    "bottleneck_adapter": _bottleneck,
    "lang_adapter": _language,
    "prefix_tuning": _prefix,
    "dummy": _compacter,
    "compacter": _compacter,
    "lora_adapter": _lora,
    "ia3_adapter": _ia3,
    "mam_adapter": _mix_and_match,
    "unipelt": _unipelt,
}
