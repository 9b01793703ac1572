"""LoRA on our towers: nothing changes before it learns, and what it learnt can be merged."""

import pytest
import torch

from clip_vl.engine.errors import UserError
from clip_vl.models.dual.lora import add_lora, merged_state
from clip_vl.models.towers.image import build_image_tower
from clip_vl.models.towers.text import build_text_tower

TEXTS = ["a red square", "a blue ring above a green cross"]


def image_tower():
    torch.manual_seed(0)
    return build_image_tower("clip", "ViT-tiny", resolution=32).eval()


def test_towers_give_the_same_until_lora_learns():
    images, text = torch.randn(2, 3, 32, 32), build_text_tower("clip", "ViT-tiny").eval()
    tower, tokens = image_tower(), text.tokenizer(TEXTS)
    before = tower(images), text(tokens)
    add_lora(tower, 4), add_lora(text, 4)
    for one, two in zip(before, (tower.eval()(images), text.eval()(tokens))):
        assert torch.allclose(one, two, atol=1e-6)


def test_six_layers_of_each_block_learn_and_nothing_else():
    tower, r, D = image_tower(), 4, 192
    blocks = 6
    expected = blocks * (4 * r * 2 * D + 2 * r * (D + 4 * D))  # query, key, value, out: D x D; the MLP's two: D x 4 D
    assert add_lora(tower, r) == expected
    assert all(".lora_" in name for name, parameter in tower.named_parameters() if parameter.requires_grad)


def test_merged_weights_give_what_the_updates_gave():
    tower, images = image_tower(), torch.randn(2, 3, 32, 32)
    names = list(tower.state_dict())
    add_lora(tower, 4, dropout=0.0)
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            if ".lora_" in name:
                parameter.normal_(std=0.05)
    adapted = tower.eval()(images)
    plain, state = image_tower(), merged_state(tower)
    assert list(state) == names or set(state) == set(names)
    assert not torch.allclose(plain(images), adapted, atol=1e-3)
    plain.load_state_dict(state)
    assert torch.allclose(plain(images), adapted, atol=1e-5)


def test_a_tower_without_our_blocks_is_refused():
    with pytest.raises(UserError, match="LoRA is for clip towers"):
        add_lora(build_image_tower("clip", "RN-micro"), 4)


def test_a_model_without_lora_keeps_its_names():
    """A ResNet's attention pool has q_proj, k_proj and v_proj of its own, which are nobody's parts."""
    tower = build_image_tower("clip", "RN-micro")
    assert merged_state(tower).keys() == tower.state_dict().keys()
    both = torch.nn.ModuleDict({"image": tower, "text": build_text_tower("clip", "RN-micro")})
    names = both.state_dict().keys()
    add_lora(both, 4)
    assert merged_state(both).keys() == names
    assert not any("image" in name for name, parameter in both.named_parameters() if parameter.requires_grad)
