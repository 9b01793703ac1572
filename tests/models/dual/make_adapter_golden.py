"""Golden outputs of the package `adapters` for tests/models/test_adapters.py; not a test, and not run by the tests.

It pins an old transformers, so it lives in an environment of its own:

    python -m venv /tmp/adapters-venv
    /tmp/adapters-venv/bin/pip install adapters==1.3.0 torch safetensors
    /tmp/adapters-venv/bin/python tests/models/dual/make_adapter_golden.py

A tiny BERT with fixed random weights gets each adapter in turn, with fixed random weights too. Matrices are multiples
of 1/256 and stored as int8, so the files are small and exact. Each file holds the adapter's weights under the package's
names and outputs for two batches: `padded`, three texts of which the last is padded, and `alone`, that last text
without padding.
"""

from pathlib import Path

import adapters
import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertModel

FOLDER = Path(__file__).with_name("adapter_golden")
NAME = "golden"
ADAPTERS = {  # what the specification's table says
    "bottleneck_adapter": adapters.BnConfig(
        mh_adapter=True, output_adapter=True, reduction_factor=16, non_linearity="relu"
    ),
    "lang_adapter": adapters.SeqBnInvConfig(),
    "prefix_tuning": adapters.PrefixTuningConfig(flat=False, prefix_length=30, bottleneck_size=512),
    "dummy": adapters.CompacterConfig(phm_dim=4, reduction_factor=32, non_linearity="gelu"),
    "lora_adapter": adapters.LoRAConfig(r=8, alpha=16),
    "ia3_adapter": adapters.IA3Config(),
    "mam_adapter": adapters.MAMConfig(),
    "unipelt": adapters.UniPELTConfig(),
}
WIDTH = {"dummy": 128}  # Compacter's 4 x reduction 32; the others 32


def config(width):
    return BertConfig(vocab_size=40, hidden_size=width, num_hidden_layers=2, num_attention_heads=4,
                      intermediate_size=64, max_position_embeddings=16, attn_implementation="eager")  # fmt: skip


def randomise(parameters, seed):
    """Multiples of 1/256 up to 32/256 for each; a norm's weights around 1. Returns what is stored."""
    generator = torch.Generator().manual_seed(seed)
    stored = {}
    for name, parameter in parameters:
        drawn = torch.randint(-32, 33, parameter.shape, generator=generator, dtype=torch.int8)
        drawn[drawn == 0] = 1
        parameter.data.copy_(drawn.float() / 256 + float(name.endswith("LayerNorm.weight")))
        stored[name] = drawn
    return stored


def batch():
    ids = torch.randint(1, 40, (3, 7), generator=torch.Generator().manual_seed(0))
    keep = torch.ones_like(ids)
    ids[2, 4:], keep[2, 4:] = 0, 0
    return ids, keep


@torch.no_grad()
def main():
    FOLDER.mkdir(exist_ok=True)
    ids, keep = batch()
    for adapter, settings in ADAPTERS.items():
        width = WIDTH.get(adapter, 32)
        model = BertModel(config(width), add_pooling_layer=False).eval()
        base = {f"base.{name}": stored for name, stored in randomise(model.named_parameters(), seed=1).items()}
        adapters.init(model)
        model.add_adapter(NAME, config=settings)
        model.set_active_adapters(NAME)
        model.train_adapter(NAME)
        added = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        content = {f"adapter.{name}": stored for name, stored in randomise(added, seed=2).items()}
        model.eval()
        content["padded"] = model(input_ids=ids, attention_mask=keep).last_hidden_state
        content["alone"] = model(input_ids=ids[2:, :4], attention_mask=keep[2:, :4]).last_hidden_state
        content["parameters"] = torch.tensor(sum(p.numel() for _, p in added))
        save_file(content, FOLDER / f"{adapter}.safetensors")
        save_file(base | {"input_ids": ids, "attention_mask": keep}, FOLDER / f"bert_{width}.safetensors")
        print(adapter, int(content["parameters"]))


if __name__ == "__main__":
    main()
