"""LoRA on CLIP towers of ours (arXiv:2106.09685) through peft: on query, key, value, output and both MLP layers.

Our attention keeps query, key and value in one matrix, as CLIP's files do; for LoRA they become three layers, each with
its own low-rank update, and `merged_state` gives the checkpoint back in one, under the names it had before.
"""

import re

import torch
from torch import nn

TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj", "c_fc", "c_proj")


class _SplitProjection:
    """Mixed into an attention's class: its packed projection as three layers that peft can reach."""

    def project(self, x, first, last):
        return torch.cat([layer(x) for layer in (self.q_proj, self.k_proj, self.v_proj)[first:last]], dim=-1)


def add_lora(model, r=16, alpha=32, dropout=0.1, targets=TARGETS):
    """Freeze the model and give every linear layer of its transformer blocks a trainable low-rank update, in place.

    returns: how many parameters learn
    raises:  UserError where there is no block of ours, as in a ResNet's image tower and another library's text tower
    """
    from peft import LoraConfig, inject_adapter_in_model

    from clip_vl.engine.errors import UserError

    attentions = [part for part in model.modules() if hasattr(part, "in_proj_weight") and hasattr(part, "project")]
    if not attentions:
        raise UserError("LoRA is for clip towers of ours: pass --text_model_builder clip, and a ViT for images")
    for attention in attentions:
        _split(attention)
    model.requires_grad_(False)
    config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=list(targets))
    inject_adapter_in_model(config, model)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _split(attention):
    weights, biases = attention.in_proj_weight.chunk(3), attention.in_proj_bias.chunk(3)
    del attention.in_proj_weight, attention.in_proj_bias
    for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases):
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
    return _packed(state)


def _packed(state):
    packed = {}
    for name, tensor in state.items():
        match = re.fullmatch(r"(.*\.)([qkv])_proj\.(weight|bias)", name)
        if match is None:
            packed[name] = tensor
        elif match[2] == "q":
            parts = [state[f"{match[1]}{letter}_proj.{match[3]}"] for letter in "qkv"]
            packed[f"{match[1]}in_proj_{match[3]}"] = torch.cat(parts)
    return packed
