"""Checkpoints for others, and from them: logits equal to open_clip's and transformers' own models."""

import pytest
import torch
from torch.nn import functional as F

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.clip.text import ClipTextTower, TextConfig
from clip_vl.models.clip.vit import ViTConfig
from clip_vl.models.dual.encoder import DualEncoder
from clip_vl.models.loading.clip_exchange import from_openclip, from_transformers, to_openclip, to_transformers
from clip_vl.models.towers.image_clip import ImageConfig, _build
from clip_vl.models.towers.pixels import Pixels, describe

WIDTH, SIDE, EMBED = 128, 48, 64


@pytest.fixture(scope="module", params=[False, True], ids=["gelu", "quick_gelu"])
def ours(request):
    """A dual encoder of two layers each, with every weight drawn, biases too."""
    torch.manual_seed(0)
    image = _build(ImageConfig(ViTConfig(2, WIDTH, 16, 3), 64, EMBED, SIDE, request.param), SIDE, request.param, False)
    text = ClipTextTower(TextConfig(EMBED, WIDTH, 2, 2, quick_gelu=request.param))
    model = DualEncoder(describe(image, EMBED, Pixels(SIDE)), text, torch.nn.Identity(), torch.nn.Identity(),
                        logit_scale=torch.nn.Parameter(torch.tensor(3.0)))  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model.eval(), "quick_gelu" if request.param else "gelu"


@torch.no_grad()
def logits(model):
    """(pixels, ids, logits) of three pictures and three texts of unlike lengths."""
    pixels = torch.randn(3, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    ids = model.tokenizer(["a red cube", "two small green spheres left of a cone", "x"])["input_ids"]
    return pixels, ids, model.logit_scale.exp() * model.encode_image(pixels) @ model.encode_text(ids).T


def test_open_clip_gives_the_same_logits(ours):
    import open_clip

    model, activation = ours
    vision = {"layers": 2, "width": WIDTH, "patch_size": 16, "image_size": SIDE, "head_width": 64}
    text = {"width": WIDTH, "layers": 2, "heads": 2, "context_length": 77, "vocab_size": 49408}
    other = open_clip.CLIP(EMBED, vision, text, quick_gelu=activation == "quick_gelu").eval()
    missing = other.load_state_dict(to_openclip(model.state_dict()), strict=False)
    assert not missing.unexpected_keys and set(missing.missing_keys) <= {"attn_mask"}
    pixels, ids, expected = logits(model)
    with torch.no_grad():
        padded = F.pad(ids, (0, 77 - ids.shape[1]))
        found = other.logit_scale.exp() * other.encode_image(pixels, True) @ other.encode_text(padded, True).T
    assert torch.allclose(found, expected, atol=1e-5)


def test_transformers_gives_the_same_logits_and_the_way_back_loses_nothing(ours):
    from transformers import CLIPConfig, CLIPModel

    model, activation = ours
    state = to_openclip(model.state_dict())
    theirs, config = to_transformers(state, (2, 2), activation, SIDE)
    other = CLIPModel(CLIPConfig(**{k: v for k, v in config.items() if k != "architectures"})).eval()
    other.load_state_dict(theirs, strict=True)
    pixels, ids, expected = logits(model)
    with torch.no_grad():
        found = other(input_ids=ids, pixel_values=pixels, attention_mask=torch.ones_like(ids)).logits_per_image
    assert torch.allclose(found, expected, atol=1e-5)
    back = from_openclip(from_transformers(other.state_dict()))
    assert back.keys() == model.state_dict().keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in model.state_dict().items())


def test_what_others_have_no_place_for_is_refused(ours):
    state = ours[0].state_dict()
    with pytest.raises(UserError, match="CLIP has no image_head"):
        to_openclip(state | {"image_head.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="name its tokens"):
        to_transformers(
            to_openclip(state | {"text_tower.token_embedding.weight": torch.zeros(9, WIDTH)}), (2, 2), "gelu", 48
        )
    resnet = {name: tensor for name, tensor in state.items() if not name.startswith("image_tower.")}
    with pytest.raises(UserError, match="vision transformers alone"):
        to_transformers(to_openclip(resnet), (2, 2), "gelu", 48)
    with pytest.raises(DataError, match="bert is no tensor"):
        from_transformers({"bert": torch.zeros(1)})
    with pytest.raises(DataError, match="lacks one of query"):
        from_transformers({"text_model.encoder.layers.0.self_attn.q_proj.bias": torch.zeros(1)})
