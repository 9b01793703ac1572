"""Adapters against the package `adapters` (outputs made by make_adapter_golden.py), and whether they learn."""

import copy
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import BertConfig, BertModel, DistilBertConfig, DistilBertModel, RobertaConfig, RobertaModel

from clip_vl.engine.errors import UserError
from clip_vl.models.dual.adapters import ADAPTERS, adapter_parameters, add_adapter
from clip_vl.models.towers.hf_attention import attention_of

GOLDEN = Path(__file__).with_name("adapter_golden")
NAMES = sorted(set(ADAPTERS) - {"compacter"})
WIDTH = {"dummy": 128}

RENAMED = [  # names of the package `adapters` -> ours; peft's for lora_adapter and ia3_adapter
    (r"^invertible_adapters\.golden\.", "embeddings.invertible."),
    (r"^shared_parameters\.golden\.phm_rule$", "phm_rule.rule"),
    (r"^encoder\.layer\.0\.attention\.self\.prefix_tuning\.pool\.prefix_tunings\.golden\.self_prefix\.", "prefix."),
    (r"^prefix\.wte\.weight$", "prefix.tokens"),
    (r"^prefix\.control_trans\.0\.", "prefix.down."),
    (r"^prefix\.control_trans\.2\.", "prefix.up."),
    (r"\.prefix_tuning\.prefix_gates\.golden\.", ".prefix_gate.linear."),
    (r"\.adapters\.golden\.adapter_down\.0\.", ".adapter.down."),
    (r"\.adapters\.golden\.adapter_up\.", ".adapter.up."),
    (r"\.adapters\.golden\.gate\.", ".adapter.gate.linear."),
    (r"\.W_(left|right)$", r".\1"),
    (r"\.b$", ".bias"),
]
RENAMED_LORA = {
    "unipelt": [(r"\.(query|value)\.loras\.golden\.lora_", r".lora_\1."),
                (r"\.(query|value)\.loras\.golden\.gate\.", r".lora_\1.gate.linear.")],
    "lora_adapter": [(r"\.loras\.golden\.lora_(.)$", r".lora_\1.default.weight")],
    "ia3_adapter": [(r"\.loras\.golden\.lora_B$", ".ia3_l.default")],
}  # fmt: skip


def bert(width=32, layers=2, config_class=BertConfig, model_class=BertModel):
    torch.manual_seed(0)
    config = config_class(vocab_size=40, hidden_size=width, num_hidden_layers=layers, num_attention_heads=4,
                          intermediate_size=64, max_position_embeddings=16)  # fmt: skip
    config._attn_implementation = attention_of(model_class)
    return model_class(config, add_pooling_layer=False).eval()


def stored(name):
    content = load_file(GOLDEN / f"{name}.safetensors")
    return {key: value.float() / 256 if value.dtype == torch.int8 else value for key, value in content.items()}


def golden_model(name):
    """Our model with the golden file's weights, the file, and the batch."""
    width = WIDTH.get(name, 32)
    base, golden = stored(f"bert_{width}"), stored(name)
    model = bert(width)
    weights = {key.removeprefix("base."): value for key, value in base.items() if key.startswith("base.")}
    model.load_state_dict({k: v + float(k.endswith("LayerNorm.weight")) for k, v in weights.items()}, strict=True)
    add_adapter(model, name)
    own = dict(model.named_parameters())
    given = {renamed(key.removeprefix("adapter."), name): v for key, v in golden.items() if key.startswith("adapter.")}
    assert {key for key, p in own.items() if p.requires_grad} == set(given)
    for key, value in given.items():
        own[key].data.copy_(value)
    return model, golden, {key: base[key] for key in ("input_ids", "attention_mask")}


def renamed(key, name):
    for pattern, replacement in [*RENAMED, *RENAMED_LORA.get(name, [])]:
        key = re.sub(pattern, replacement, key)
    return key


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_the_outputs_are_those_of_the_package_adapters(name):
    model, golden, batch = golden_model(name)
    states = model(**batch).last_hidden_state
    alone = model(**{key: value[2:, :4] for key, value in batch.items()}).last_hidden_state
    assert torch.allclose(states[:2], golden["padded"][:2], atol=1e-5, rtol=1e-5)
    assert torch.allclose(alone, golden["alone"], atol=1e-5, rtol=1e-5)
    assert torch.allclose(states[2:, :4], golden["alone"], atol=1e-5, rtol=1e-5)  # padding changes nothing
    plain = bert(WIDTH.get(name, 32))
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k in plain.state_dict()}, strict=False)
    assert not torch.allclose(plain(**batch).last_hidden_state, golden["padded"], atol=1e-2)


@pytest.mark.parametrize("name", NAMES)
def test_as_many_parameters_learn_as_in_the_package_adapters(name):
    assert adapter_parameters(add_adapter(bert(WIDTH.get(name, 32)), name)) == int(stored(name)["parameters"])


def test_the_published_gates_see_padding_and_ours_do_not():
    golden = stored("unipelt")
    assert not torch.allclose(golden["padded"][2:, :4], golden["alone"], atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("family", [(BertConfig, BertModel), (RobertaConfig, RobertaModel)], ids=["bert", "roberta"])
def test_a_batch_is_learnt_by_the_adapter_alone(name, family):
    """What another adapter of the same kind makes of a batch is learnt in a few steps; the base stays as it was."""
    model = add_adapter(bert(WIDTH.get(name, 32), 1, *family), name)
    batch = {"input_ids": torch.randint(3, 40, (4, 6), generator=torch.Generator().manual_seed(1))}
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    target = model_with_other_adapter(model)(**batch).last_hidden_state.detach()
    before = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}
    learning = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(learning, lr=1e-2)
    losses = []
    for _ in range(30):
        losses.append((model(**batch).last_hidden_state - target).square().mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.5 * losses[0]
    assert all(torch.equal(p, before[key]) for key, p in model.named_parameters() if not p.requires_grad)
    assert all(p.grad is not None for p in learning)


def model_with_other_adapter(model):
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape)
    return other


@pytest.mark.parametrize("name", ["lora_adapter", "ia3_adapter"])
@torch.no_grad()
def test_what_begins_as_nothing_changes_nothing(name):
    ids = torch.randint(3, 40, (2, 5))
    plain = bert()
    assert torch.equal(add_adapter(copy.deepcopy(plain), name)(ids)[0], plain(ids)[0])


@pytest.mark.parametrize("name", ["unipelt", "dummy"])
@torch.no_grad()
def test_a_copy_has_a_life_of_its_own(name):
    """An averaged model is a deep copy: what layers share must be the copy's."""
    model, _, batch = golden_model(name)
    twin = copy.deepcopy(model)
    expected = model(**batch)[0]
    for parameter in model.parameters():
        parameter.mul_(0.5)
    assert torch.equal(twin(**batch)[0], expected)
    assert len(twin.state_dict()) == len({t.data_ptr() for t in twin.state_dict().values()})  # no tensor twice


def test_both_names_of_compacter_are_one():
    assert ADAPTERS["dummy"] is ADAPTERS["compacter"]


def test_an_unknown_name_another_build_and_an_odd_width_are_told():
    with pytest.raises(UserError, match="--adapter lora is none of bottleneck_adapter, lang_adapter"):
        add_adapter(bert(), "lora")
    distil = DistilBertModel(DistilBertConfig(vocab_size=40, dim=32, n_layers=1, n_heads=4, hidden_dim=64))
    with pytest.raises(UserError, match=r"needs an encoder of BERT's build .* not a distilbert"):
        add_adapter(distil, "lora_adapter")
    with pytest.raises(UserError, match="multiple of 128, not 32"):
        add_adapter(bert(), "compacter")
