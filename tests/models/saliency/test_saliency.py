"""Saliency: planted cases with a known place, Grad-CAM and the attention rule written out, every builder's towers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.models.attention import attend
from clip_vl.models.clip.grid import GridConfig
from clip_vl.models.clip.vit import ViTConfig
from clip_vl.models.dual.encoder import DualEncoder
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.encoder import VLEncoder, VLPretrainer
from clip_vl.models.fused.scorer import FusedScorer
from clip_vl.models.saliency.layers import AttentionProbabilities
from clip_vl.models.saliency.saliency import (
    ACTIVATION,
    ATTENTION,
    GRAD_CAM,
    NO_CELLS,
    dual_saliency,
    fused_saliency,
    saliency_of,
)
from clip_vl.models.towers.image import build_image_tower
from clip_vl.models.towers.pooled import PooledTower


def cosine_with(tower, images, seed=0):
    """() -> cosine of the tower's feature of `images` with a random direction."""
    direction = torch.randn(tower(images).detach().flatten(1).shape[1], generator=torch.Generator().manual_seed(seed))
    return lambda: F.cosine_similarity(tower(images).flatten(1), direction[None]).sum()


def random_images(side, seed=0):
    return torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(seed))


# ---- planted places


class Mean(nn.Module):
    """Cells of 8 pixels with the mean of each colour in them, averaged: a ResNet that knows three things."""

    def __init__(self):
        super().__init__()
        self.features = nn.Conv2d(3, 3, 8, stride=8, bias=False)
        with torch.no_grad():
            self.features.weight.copy_(torch.eye(3)[:, :, None, None].expand(3, 3, 8, 8) / 64)

    def forward(self, images):
        return self.features(images).mean((2, 3))


class Colours(nn.Module):
    """The text tower of `Mean`: a word's place in the list is the colour's."""

    def tokenizer(self, texts):
        return {"input_ids": torch.tensor([["red", "green", "blue"].index(text) for text in texts])}

    def forward(self, tokens):
        return torch.eye(3)[tokens["input_ids"]]


@pytest.fixture
def coloured():
    """(dual encoder, uint8 picture (1, 3, 32, 32) that is red at the top right and blue at the bottom left)."""
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    images[0, 0, :8, 24:] = 255
    images[0, 2, 24:, :16] = 255
    model = DualEncoder(Mean(), Colours(), nn.Identity(), nn.Identity())
    model.std.fill_(1.0)
    return model, images


def test_the_heat_of_a_colour_lies_where_that_colour_is(coloured):
    model, images = coloured
    red, blue, green = (dual_saliency(model, images, colour) for colour in ("red", "blue", "green"))
    assert red.method == GRAD_CAM and red.heat.shape == (4, 4) and red.heat.dtype == np.float32
    expected = np.zeros((4, 4))
    expected[0, 3] = 1
    assert red.heat == pytest.approx(expected)
    expected = np.zeros((4, 4))
    expected[3, :2] = 1
    assert blue.heat == pytest.approx(expected)
    assert not green.heat.any()  # nothing speaks for it, and nothing is divided by zero


def test_the_model_is_left_as_it_was(coloured):
    """Modes part by part, gradients, what is frozen, and running statistics."""
    model, images = coloured
    model.image_tower.norm = nn.BatchNorm2d(3)
    model.train()
    model.image_tower.norm.eval()
    model.text_head.requires_grad_(False)
    model.image_tower.features.weight.grad = torch.ones_like(model.image_tower.features.weight)
    modes = [module.training for module in model.modules()]
    learning = [parameter.requires_grad for parameter in model.parameters()]
    dual_saliency(model, images, "red")
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == learning
    assert model.image_tower.features.weight.grad.eq(1).all()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.is_grad_enabled()


def test_a_frozen_tower_under_no_grad_has_the_same_heat(coloured):
    model, images = coloured
    free = dual_saliency(model, images, "blue")
    model.requires_grad_(False)
    with torch.no_grad():
        frozen = dual_saliency(model, images, "blue")
    assert (frozen.heat == free.heat).all()


class Patches(nn.Module):
    """A transformer of one layer that looks where a patch is bright, in whatever colour, and reads the class token."""

    def __init__(self):
        super().__init__()
        self.conv1 = Mean().features
        self.blocks = nn.ModuleList([Look()])

    def forward(self, images):
        patches = self.conv1(images).flatten(2).transpose(1, 2)  # (1, h w, 3)
        x = torch.cat([torch.zeros(1, 1, 3), patches], dim=1)
        for block in self.blocks:
            x = block(x)
        return x[:, 0]


class Look(nn.Module):
    def forward(self, x):
        head = x[:, None]
        query = torch.ones_like(head)
        return x + attend(query, 3 * head, head)[:, 0]


def test_attention_times_gradient_finds_the_patches_that_speak_for_the_score():
    """Both corners are looked at; only the one in the score's colour is hot, in a picture that is not a square."""
    tower, images = Patches().eval(), torch.zeros(1, 3, 16, 40)
    images[0, 0, :8, 32:] = 1.0
    images[0, 2, 8:, :8] = 1.0
    for channel, corner in ((0, (0, 4)), (2, (1, 0))):
        heat, method = saliency_of(tower, lambda: tower(images)[0, channel])  # noqa: B023
        assert method == ATTENTION and heat.shape == (2, 5)
        assert heat[corner] == 1 and heat.sum() - 1 < 0.01


# ---- against the formulas written out


def test_grad_cam_on_a_resnet_is_the_papers_formula():
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18().eval().requires_grad_(False)
    model.fc = nn.Identity()
    images = random_images(96)
    score = cosine_with(model, images)
    heat, method = saliency_of(model, score)

    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    A = model.layer4(model.layer3(model.layer2(model.layer1(x)))).requires_grad_()  # (1, 512, 3, 3)
    direction = torch.randn(512, generator=torch.Generator().manual_seed(0))
    y = F.cosine_similarity(A.mean((2, 3)), direction[None]).sum()
    assert y.item() == pytest.approx(score().item(), abs=1e-6)
    (dydA,) = torch.autograd.grad(y, A)
    alpha = dydA[0].sum((1, 2)) / 9
    expected = sum(alpha[k] * A[0, k].detach() for k in range(512)).clamp(min=0)
    assert method == GRAD_CAM and heat == pytest.approx((expected / expected.max()).numpy(), abs=1e-5)
    assert heat.max() == 1 and heat.min() >= 0


def written_out(tower, images, direction):
    """Our pooled transformer by hand, one head at a time -> relevance of the patches by equations 5 and 6."""
    patches = tower.conv1(images)
    x = torch.cat([tower.class_embedding.expand(1, 1, -1), patches.flatten(2).transpose(1, 2)], dim=1)
    x = tower.ln_pre(x + tower.positional_embedding)
    maps = []
    for block in tower.transformer["resblocks"]:
        heads, normed = block.attn.heads, block.ln_1(x)
        parts = F.linear(normed, block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)
        outputs, per_head = [], []
        for q, k, v in zip(*(part.chunk(heads, dim=-1) for part in parts)):
            A = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5).softmax(-1)
            A.retain_grad()
            per_head.append(A)
            outputs.append(A @ v)
        maps.append(per_head)
        x = x + block.attn.out_proj(torch.cat(outputs, dim=-1))
        x = x + block.mlp["c_proj"](F.gelu(block.mlp["c_fc"](block.ln_2(x))))
    F.cosine_similarity(tower.ln_post(x[:, 0]) @ tower.proj, direction[None]).sum().backward()
    R = torch.eye(x.shape[1])
    for per_head in maps:
        R = R + sum((A.grad * A.detach()).clamp(min=0)[0] for A in per_head) / len(per_head) @ R
    return R[0, 1:].view(*patches.shape[2:])


def test_attention_times_gradient_on_a_transformer_is_the_papers_formula():
    torch.manual_seed(1)
    tower = build_image_tower("clip", "ViT-tiny", resolution=48).eval()
    images = random_images(48)
    score = cosine_with(tower, images)
    heat, method = saliency_of(tower, score)
    direction = torch.randn(256, generator=torch.Generator().manual_seed(0))
    expected = written_out(tower, images, direction)
    assert method == ATTENTION and heat == pytest.approx((expected / expected.max()).numpy(), abs=1e-4)


# ---- towers of all builders


@pytest.mark.parametrize(
    "builder, name, side, method, cells",
    [
        ("clip", "RN-micro", 48, GRAD_CAM, (3, 3)),
        ("clip", "ViT-tiny", 64, ATTENTION, (4, 4)),
        ("torchvision", "mobilenet_v3_small", 64, GRAD_CAM, (2, 2)),
        ("torchvision", "densenet121", 64, GRAD_CAM, (2, 2)),
        ("timm", "resnet18", 64, GRAD_CAM, (2, 2)),
        ("openclip", "ViT-S-32", 96, ATTENTION, (3, 3)),
        ("timm", "vit_tiny_patch16_224", 64, ATTENTION, (4, 4)),
        ("timm", "deit_tiny_distilled_patch16_224", 64, ATTENTION, (4, 4)),
    ],
)
def test_towers_of_every_builder_have_a_place_for_it(builder, name, side, method, cells):
    torch.manual_seed(0)
    tower = build_image_tower(builder, name, resolution=side).eval().requires_grad_(False)
    score = cosine_with(tower, random_images(side))
    before = score().item()
    heat, found = saliency_of(tower, score)
    assert found == method and heat.shape == cells
    assert np.isfinite(heat).all() and heat.min() >= 0 and heat.max() in (0, 1)
    assert score().item() == before


@pytest.mark.parametrize(
    "kind, options, method",
    [
        ("VisionTransformer", {"global_pool": "avg", "depth": 2, "embed_dim": 48, "num_heads": 3}, ATTENTION),
        ("VisionTransformer", {"global_pool": "map", "class_token": False, "depth": 2, "embed_dim": 48, "num_heads": 3,
                               "qk_norm": True}, ATTENTION),
        ("MlpMixer", {"num_blocks": 2, "embed_dim": 32}, ACTIVATION),
        ("SwinTransformer", {"patch_size": 4, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 1),
                             "num_heads": (1, 1, 1)}, GRAD_CAM),
    ],
)  # fmt: skip
def test_other_ways_to_pool_and_to_lay_out_cells(kind, options, method):
    """A mean, a pooling attention whose keys look like a map, no attention at all, and channels last."""
    import timm.models

    torch.manual_seed(0)
    tower = PooledTower(getattr(timm.models, kind)(num_classes=0, img_size=64, **options)).eval()
    heat, found = saliency_of(tower, cosine_with(tower, random_images(64)))
    assert found == method and heat.shape == (4, 4) and heat.max() == 1 and heat.min() >= 0


def test_a_tower_without_cells_has_none_and_one_that_fails_says_how():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    images = torch.randn(1, 3, 2, 2)
    assert saliency_of(plain, lambda: plain(images).sum()) == (None, NO_CELLS)
    tower = Mean()

    def broken():
        tower(torch.zeros(1, 3, 16, 16))
        raise ValueError("no such thing\nand more")

    assert saliency_of(tower, broken) == (None, "it failed with ValueError: no such thing")


def test_attention_that_is_seen_is_the_same_attention():
    """Of torch.nn's module and of ours, and both leave probabilities; no function of torch is replaced."""
    torch.manual_seed(0)
    module, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.randn(1, 5, 8, requires_grad=True)
    query, key, value = torch.randn(3, 1, 2, 5, 4).unbind()
    fused = F.scaled_dot_product_attention
    plain = module(x, x, x, need_weights=False)[0], attend(query, key, value)
    with AttentionProbabilities() as attention:
        assert F.scaled_dot_product_attention is fused
        assert torch.allclose(module(x, x, x, need_weights=False)[0], plain[0], atol=1e-6)
        assert torch.allclose(attend(query, key, value), plain[1], atol=1e-6)
        F.scaled_dot_product_attention(query, key, value, is_causal=True)
    seen = attention.seen
    assert [tuple(probabilities.shape) for probabilities in seen] == [(1, 2, 5, 5)] * 2
    assert torch.allclose(seen[0].sum(-1), torch.ones(1, 2, 5))
    attend(query, key, value)
    assert len(seen) == 2


# ---- the fused encoder


BERT = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOKENS = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


def fused_scorer(grid):
    torch.manual_seed(0)
    return FusedScorer(VLPretrainer(VLEncoder(BertConfig(**BERT), grid)), mask_padding=True).eval()


@pytest.mark.parametrize("grid, method", [(GridConfig((1, 1), 8), GRAD_CAM), (ViTConfig(2, 16, 8, 3, 8), ATTENTION)])
def test_the_fused_encoder_has_heat_over_its_canvas(grid, method):
    scorer = fused_scorer(grid)
    images = torch.randint(0, 255, (1, 3, 32, 48), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 32, 48]])
    heat, found = fused_saliency(scorer, images, boxes, TOKENS)
    assert found == method and heat.shape == (4, 6) and heat.max() == 1 and heat.min() >= 0


def test_the_fused_encoders_heat_keeps_off_cells_that_no_token_sees_and_is_not_transposed():
    """Grad-CAM written out on a grid of 4 x 6 cells of which two columns are padding."""
    scorer = fused_scorer(GridConfig((1, 1), 8))
    images = torch.randint(0, 255, (1, 3, 32, 48), dtype=torch.uint8)
    boxes = torch.tensor([[0, 0, 32, 32]])
    grid = scorer.see(images).requires_grad_()
    (gradient,) = torch.autograd.grad(scorer.log_odds(grid, boxes, **TOKENS).sum(), grid)
    assert not gradient[..., 4:].any() and gradient[..., :4].any()
    expected = torch.einsum("c,chw->hw", gradient[0].mean((1, 2)), grid[0].detach()).relu()
    heat, _ = fused_saliency(scorer, images, boxes, TOKENS)
    assert heat == pytest.approx((expected / expected.max()).numpy(), abs=1e-5)
