"""LoRA on CLIP towers of ours (arXiv:2106.09685) through peft: on query, key, value, output and both MLP layers.

Our attention keeps query, key and value in one matrix, as CLIP's files do; for LoRA they become three layers, each with
its own low-rank update, and `merged_state` gives the checkpoint back in one, under the names it had before.
"""

import torch
from torch import nn

PARTS = ("q_proj", "k_proj", "v_proj")


class _SplitProjection:
    """Mixed into an attention's class: its packed projection as three layers that peft can reach."""

    def project(self, x, first, last):
        return torch.cat([layer(x) for layer in [getattr(self, name) for name in PARTS[first:last]]], dim=-1)


def add_lora(model, r=16, alpha=32, dropout=0.1):
    """Freeze the model and give every linear layer of its transformer blocks a trainable low-rank update, in place.

    returns: the number of trainable parameters
    raises:  UserError where there is no block of ours, as in a ResNet's image tower and another library's text tower
    """
    from peft import LoraConfig, inject_adapter_in_model

    from clip_vl.engine.errors import UserError

    attentions = {
        name: part
        for name, part in model.named_modules()
        if hasattr(part, "in_proj_weight") and hasattr(part, "project")
    }
    if not attentions:
        raise UserError("LoRA is for clip towers of ours: pass --text_model_builder clip, and a ViT for images")
    targets = []
    for name, attention in attentions.items():
        _split(attention)
        block = name.rpartition("attn")[0]
        targets += [f"{name}.{part}" for part in (*PARTS, "out_proj")] + [f"{block}mlp.c_fc", f"{block}mlp.c_proj"]
    model.requires_grad_(False)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=targets)
    inject_adapter_in_model(config, model)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _split(attention):
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    del attention.in_proj_weight, attention.in_proj_bias
    for name, weight, bias in zip(PARTS, weights, biases):
        layer = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
        layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
        setattr(attention, name, layer)
    own = type(attention)
    attention.__class__ = type(f"Split{own.__name__}", (_SplitProjection, own), {})


@torch.no_grad()
def merged_state(model):
    """The state dict as it was named before `add_lora`, updates added to the weights; a model without LoRA's own."""
    state = {}
    for name, tensor in model.state_dict().items():
        if ".lora_" not in name:
            state[name.replace(".base_layer.", ".")] = tensor
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):
            state[f"{name}.weight"] = state[f"{name}.weight"] + module.get_delta_weight("default")
    for name, module in model.named_modules():
        if isinstance(module, _SplitProjection):
            for kind in ("weight", "bias"):
                state[f"{name}.in_proj_{kind}"] = torch.cat([state.pop(f"{name}.{part}.{kind}") for part in PARTS])
    return state
