"""CLIP's text tower against open_clip's with the same random weights."""

import pytest
import torch
from open_clip import transformer as open_clip_transformer
from torch import nn

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.text import ClipTextTower, TextConfig, build_clip_text, text_config

TEXTS = ["a cat", "two dogs play in the snow, near a red house; a third one sleeps", "x"]
SMALL = TextConfig(embed_dim=24, width=64, layers=3, heads=2, context_length=30)


def open_clip_tower(config):
    """open_clip's tower, all weights random."""
    torch.manual_seed(0)
    tower = open_clip_transformer.TextTransformer(
        context_length=config.context_length, vocab_size=config.vocab_size, width=config.width, heads=config.heads,
        layers=config.layers, output_dim=config.embed_dim, mlp_ratio=config.mlp_ratio,
        act_layer=open_clip_transformer.QuickGELU if config.quick_gelu else nn.GELU,
    ).eval()  # fmt: skip
    for name, parameter in tower.named_parameters():
        if "ln_" in name or name.endswith("bias"):
            nn.init.normal_(parameter, mean=float("ln_" in name and "weight" in name), std=0.1)
    return tower


def padded(ids, context_length):
    return nn.functional.pad(ids, (0, context_length - ids.shape[1]))


@pytest.mark.parametrize("quick_gelu", [False, True])
@torch.no_grad()
def test_features_are_open_clips_whatever_the_padding(quick_gelu):
    config = TextConfig(24, 64, 3, 2, 30, 49408, 3.0, quick_gelu)
    theirs, ours = open_clip_tower(config), ClipTextTower(config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ids = ours.tokenize(TEXTS)["input_ids"]
    assert ids.shape[1] < 30
    expected = theirs(padded(ids, 30))
    for given in ({"input_ids": ids}, ids, padded(ids, 30)):
        assert torch.allclose(ours(given), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_only_tokens_up_to_the_ends_are_computed():
    tower, rows = ClipTextTower(SMALL), []
    for block in tower.transformer["resblocks"]:
        block.mlp["c_fc"].register_forward_hook(lambda layer, inputs, output: rows.append(len(output)))
    ids = tower.tokenize(TEXTS)["input_ids"]
    tower(padded(ids, 30))
    tokens = int((ids != 0).sum())
    assert rows == [tokens, tokens, len(TEXTS)]


def test_gradients_are_open_clips():
    theirs, ours = open_clip_tower(SMALL), ClipTextTower(SMALL)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    ids = ours.tokenize(TEXTS)["input_ids"]
    weights = torch.randn(3, 24)
    (ours(ids) * weights).sum().backward()
    (theirs(padded(ids, 30)) * weights).sum().backward()
    for name, parameter in theirs.named_parameters():
        assert torch.allclose(ours.get_parameter(name).grad, parameter.grad, atol=1e-4, rtol=1e-4), name


@torch.no_grad()
def test_prompt_vectors_stand_behind_the_start_token():
    """With the embeddings of "a photo of" as prompt, a text has the feature of "a photo of <text>"."""
    plain = ClipTextTower(SMALL).eval()
    prompted = ClipTextTower(SMALL, n_prompt=3).eval()
    prompted.load_state_dict(plain.state_dict(), strict=False)
    prompt = plain.tokenize(["a photo of"])["input_ids"][0, 1:4]
    prompted.prompt.copy_(plain.token_embedding(prompt))
    assert prompted.context_length == 27 and prompted.prompt.requires_grad
    found = prompted(prompted.tokenize(TEXTS))
    assert torch.allclose(found, plain(plain.tokenize([f"a photo of {text}" for text in TEXTS])), atol=1e-5)


@torch.no_grad()
def test_word_pieces_are_pooled_at_their_last_token(tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\nred\ncube\n")
    tower = ClipTextTower(SMALL, vocab=tmp_path).eval()
    assert tower.token_embedding.weight.shape == (8, 64)
    together = tower(tower.tokenize(["a red cube", "red"]))
    apart = torch.cat([tower(tower.tokenize([text])) for text in ("a red cube", "red")])
    assert torch.allclose(together, apart, atol=1e-5) and not torch.allclose(together[0], together[1], atol=1e-3)


def test_names_give_the_published_shapes():
    assert text_config("ViT-B/32") == text_config("ViT-B-32") == TextConfig()
    assert text_config("RN50") == TextConfig(embed_dim=1024)
    assert text_config("ViT-L/14@336px") == TextConfig(768, 768, 12, 12, quick_gelu=False)
    assert text_config("ViT-B-32-quickgelu").quick_gelu
    for name in ("RN-tiny", "RN-micro", "ViT-tiny"):
        assert text_config(name) == TextConfig(256, 256, 4, 4, 32)
    with pytest.raises(UserError, match="no architecture of open_clip's"):
        text_config("ViT-B-33")
    with pytest.raises(UserError, match="not a plain CLIP text tower: build it with the openclip builder"):
        text_config("ViT-B-16-SigLIP")


@torch.no_grad()
def test_a_whole_clip_file_gives_its_text_half_and_its_temperature(tmp_path):
    source = build_clip_text("RN-tiny")
    assert source.initial_logit_scale is None  # fresh weights have no temperature of their own
    state = {f"text.{key}": value for key, value in source.state_dict().items()}
    path = tmp_path / "clip.pt"
    torch.save(state | {"visual.proj": torch.zeros(2, 2), "logit_scale": torch.tensor(3.5)}, path)
    tower = build_clip_text("RN-tiny", weights=path, n_prompt=2)
    assert tower.initial_logit_scale == 3.5 and tower.prompt.shape == (2, 256)
    assert all(torch.equal(tower.state_dict()[key], value) for key, value in source.state_dict().items())
    with pytest.raises(UserError, match=r"clip\.pt \(text tower RN50\) does not fit"):
        build_clip_text("RN50", weights=path)
    with pytest.raises(UserError, match="leave no room for a text"):
        build_clip_text("RN-tiny", n_prompt=31)
