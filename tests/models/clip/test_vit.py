"""The vision transformers against open_clip's, with the same random weights, and their positions against Pillow."""

import numpy as np
import pytest
import torch
from open_clip import transformer as open_clip_transformer
from open_clip.pos_embed import get_2d_sincos_pos_embed
from PIL import Image

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.grid import GRID_ENCODERS, build_grid_encoder
from clip_vl.models.clip.vit import VisionTransformer, ViTConfig, resize_positions
from clip_vl.models.fused.bert import BertConfig
from clip_vl.models.fused.encoder import VLEncoder
from clip_vl.models.fused.pretrained import detect_grid_encoder, load_clip_visual

PUBLISHED = {"ViT-B/32": (768, 32, 7), "ViT-B/16": (768, 16, 14), "ViT-L/14": (1024, 14, 16)}
SMALL = ViTConfig(layers=2, width=128, patch=16, positions=3)


def open_clip_tower(config, side):
    """open_clip's tower for square images, all weights random, giving its patch tokens after the final norm."""
    torch.manual_seed(0)
    tower = open_clip_transformer.VisionTransformer(
        image_size=side, patch_size=config.patch, width=config.width, layers=config.layers, heads=config.width // 64,
        mlp_ratio=4.0, output_dim=64, act_layer=open_clip_transformer.QuickGELU, output_tokens=True,
    ).eval()  # fmt: skip
    for name, parameter in tower.named_parameters():
        if "ln_" in name or name.endswith("bias"):
            torch.nn.init.normal_(parameter, mean=float("ln_" in name and "weight" in name), std=0.1)
    return tower


def shared(config, theirs):
    ours = VisionTransformer(config).eval()
    state = {key: value for key, value in theirs.state_dict().items() if key != "proj"}
    ours.load_state_dict(state, strict=True)
    return ours


@pytest.mark.parametrize("name", PUBLISHED)
@torch.no_grad()
def test_grid_features_are_open_clips_patch_tokens(name):
    full = GRID_ENCODERS[name]
    assert (full.grid_dim, full.stride, full.positions) == PUBLISHED[name] and full.layers in (12, 24)
    config = ViTConfig(2, full.width, full.patch, full.positions)  # two layers of the published width: seconds less
    side = config.patch * config.positions
    theirs = open_clip_tower(config, side)
    images = torch.randn(2, 3, side, side)
    expected = theirs(images)[1]  # (N, h w, D)
    grid_features = shared(config, theirs)(images)
    assert grid_features.shape == (2, config.width, config.positions, config.positions)
    assert torch.allclose(grid_features.flatten(2).transpose(1, 2), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_whole_vit_b_32_agrees():
    theirs = open_clip_tower(GRID_ENCODERS["ViT-B/32"], 224)
    images = torch.randn(1, 3, 224, 224)
    ours = shared(GRID_ENCODERS["ViT-B/32"], theirs)(images).flatten(2).transpose(1, 2)
    assert torch.allclose(ours, theirs(images)[1], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (3, 9), (7, 5)])
def test_positions_are_resized_as_pillow_resizes_a_picture(shape):
    """Rows stay rows: shapes that are not square would show a swap; smaller ones that the filter widens."""
    table = torch.from_numpy(get_2d_sincos_pos_embed(8, 7, cls_token=True)).float() + torch.randn(50, 8)
    resized = resize_positions(table, *shape)
    assert torch.equal(resized[0], table[0])
    for channel in range(8):
        picture = Image.fromarray(table[1:, channel].reshape(7, 7).numpy(), mode="F")
        expected = np.asarray(picture.resize(shape[::-1], Image.BICUBIC)).ravel()
        assert np.allclose(resized[1:, channel].numpy(), expected, atol=1e-5)


def test_the_learned_grid_itself_is_left_alone():
    table = torch.randn(50, 8)
    assert resize_positions(table, 7, 7) is table


@torch.no_grad()
def test_another_canvas_is_the_square_tower_with_resized_positions():
    theirs = open_clip_tower(SMALL, 48)
    ours = shared(SMALL, theirs)
    images = torch.randn(1, 3, 64, 96)
    theirs.positional_embedding = torch.nn.Parameter(resize_positions(ours.positional_embedding, 4, 6))
    theirs.grid_size = (4, 6)
    expected = theirs(images)[1].transpose(1, 2).unflatten(2, (4, 6))
    assert torch.allclose(ours(images), expected, atol=1e-5, rtol=1e-5)


def test_recomputing_changes_no_gradient():
    torch.manual_seed(0)
    plain = VisionTransformer(SMALL)
    frugal = VisionTransformer(SMALL, checkpoint_backbone=True)
    frugal.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 32, 48)
    for tower in (plain, frugal):
        tower(images).square().sum().backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(plain.parameters(), frugal.parameters()))


def test_frozen_norms_are_refused_where_there_are_none():
    with pytest.raises(UserError, match="has no BatchNorm"):
        build_grid_encoder(SMALL, bn_mode="frozen")


@pytest.fixture
def small_is_known(monkeypatch):
    monkeypatch.setitem(GRID_ENCODERS, "ViT-small", SMALL)


def test_a_clip_file_is_recognised_and_loaded_without_its_text_tower(small_is_known, tmp_path):
    theirs = open_clip_tower(SMALL, 48)
    state = {f"visual.{key}": value.half() for key, value in theirs.state_dict().items()}
    text = {"positional_embedding": torch.zeros(77, 64), "transformer.resblocks.7.ln_1.weight": torch.zeros(64)}
    torch.save(state | text, tmp_path / "clip.pt")
    assert detect_grid_encoder(state | text) == "ViT-small"
    ours = build_grid_encoder(SMALL)
    load_clip_visual(ours, tmp_path / "clip.pt")
    assert torch.equal(ours.ln_post.weight, theirs.ln_post.weight.half().float())
    with pytest.raises(UserError, match="holds ViT-small, but the model's tower is ViT-B/32; pass --clip_model_name"):
        load_clip_visual(build_grid_encoder(GRID_ENCODERS["ViT-B/32"]), tmp_path / "clip.pt")


def test_the_fused_encoder_takes_its_cells(small_is_known):
    config = BertConfig(vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    encoder = VLEncoder(config, SMALL, positional_embedding=True)
    images, text = torch.zeros(2, 3, 32, 64, dtype=torch.uint8), torch.ones(2, 5, dtype=torch.long)
    _, visual_states, _ = encoder(images, text, text)
    assert visual_states.shape == (2, 2 * 4, 32)
    assert detect_grid_encoder(encoder.state_dict()) == "ViT-small"
