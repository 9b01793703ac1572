"""The dual encoder: features against open_clip's, and what `forward` gives for losses, with towers of a few numbers."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from clip_vl.models.clip.statistics import CLIP_MEAN, CLIP_STD
from clip_vl.models.clip.text import ClipTextTower, TextConfig
from clip_vl.models.dual.encoder import CachedTower, DualEncoder
from clip_vl.models.loading.clip_exchange import to_openclip
from clip_vl.models.towers.image_clip import build_clip_tower

SENTENCES = ["a red cube", "two small green spheres to the left of a yellow cone", "x", "a dog"]


class Words(nn.Module):
    """A text tower: the mean of its tokens' vectors."""

    width = 4

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(30, 4)

    def tokenizer(self, texts):
        lengths = [[len(word) for word in text.split()] for text in texts]
        return {"ids": nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in lengths], batch_first=True)}

    def forward(self, tokens):
        ids = tokens["ids"]
        seen = (ids > 0)[..., None].float()
        return (self.table(ids) * seen).sum(1) / seen.sum(1)


class Colours(nn.Module):
    width, mean, std = 3, (0.5, 0.25, 0.0), (0.5, 0.25, 2.0)

    def forward(self, images):
        return images.mean((2, 3))


def small(**extras):
    torch.manual_seed(0)
    return DualEncoder(Colours(), Words(), nn.Linear(3, 5), nn.Linear(4, 5), **extras).eval()


@pytest.fixture(scope="module")
def clip():
    torch.manual_seed(0)
    text = ClipTextTower(TextConfig(embed_dim=256, width=64, layers=2, heads=2))
    image = build_clip_tower("ViT-tiny", resolution=48)
    return DualEncoder(image, text, nn.Identity(), nn.Identity(), logit_scale=nn.Parameter(torch.tensor(3.0))).eval()


@torch.no_grad()
def test_features_of_pictures_and_sentences_are_open_clips(clip):
    """Pixels of 0 to 255 by CLIP's statistics, sentences by its tokenizer, the same weights: the same features."""
    import open_clip

    vision = {"layers": 6, "width": 192, "patch_size": 16, "image_size": 48, "head_width": 64}
    text = {"width": 64, "layers": 2, "heads": 2}
    other = open_clip.CLIP(256, vision, text).eval()
    other.load_state_dict(to_openclip(clip.state_dict()), strict=False)
    images = torch.randint(0, 256, (3, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    expected = other.encode_image((images.float() / 255 - mean) / std, normalize=True)
    assert torch.allclose(clip.encode_image(images), expected, atol=1e-5)
    expected = other.encode_text(open_clip.tokenize(SENTENCES), normalize=True)
    assert torch.allclose(clip.encode_text(SENTENCES), expected, atol=1e-5)
    assert np.allclose(clip.encode(SENTENCES, batch_size=2), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 32])
def test_sentences_of_any_length_come_back_in_their_order(batch_size):
    model = small()
    alone = np.stack([model.encode([sentence])[0] for sentence in SENTENCES])
    found = model.encode(SENTENCES, batch_size=batch_size)
    assert found.dtype == np.float32 and np.allclose(found, alone, atol=1e-6)
    assert not np.allclose(alone[0], alone[1]) and model.encode([]).shape[0] == 0


@torch.no_grad()
def test_features_have_unit_length_and_without_projection_are_the_towers():
    model = small()
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    tokens = model.tokenizer(SENTENCES)
    for features in (model.encode_image(images), model.encode_text(tokens)):
        assert torch.allclose(features.norm(dim=1), torch.ones(len(features)), atol=1e-6) and features.shape[1] == 5
    plain = model.encode_image(images, projection=False)
    expected = (images.float().mean((2, 3)) / 255 - torch.tensor(Colours.mean)) / torch.tensor(Colours.std)
    assert torch.allclose(plain, expected, atol=1e-6)
    assert torch.allclose(model.encode_image(images), F.normalize(model.image_head(plain), dim=1))
    assert torch.equal(model.encode_text(tokens, projection=False), model.text_tower(tokens))


def test_a_loss_gets_what_it_brought_and_nothing_else():
    """Heads' outputs as they are, temperatures as factors, and nothing that distributed training would wait for."""
    images = torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8)
    model = small()
    batch = {"images": images, "tokens": model.tokenizer(["a dog", "x"])}
    assert model(batch).keys() == {"image_features", "text_features"}
    assert torch.equal(model(batch)["image_features"], model.image_output(images))
    extras = {"logit_scale": nn.Parameter(torch.tensor(2.0)), "logit_bias": nn.Parameter(torch.tensor(-10.0)),
              "prototypes": nn.Linear(5, 7, bias=False), "prototype_scale": nn.Parameter(torch.tensor(1.0)),
              "image_projection": nn.Linear(5, 2), "text_projection": nn.Linear(5, 2)}  # fmt: skip
    model = small(**extras)
    found = model(batch | {"images_2": images.flip(0)})
    assert found["logit_scale"].item() == pytest.approx(math.exp(2)) and found["logit_bias"].item() == -10
    assert found["prototype_scale"].item() == pytest.approx(math.e) and found["image_scores"].shape == (2, 7)
    assert torch.equal(found["text_projected"], model.text_projection(found["text_features"]))
    assert torch.allclose(found["image_features_2"], found["image_features"].flip(0), atol=1e-6)
    assert "text_features_2" not in found
    model.two_texts = True
    assert torch.equal(model(batch)["text_features_2"], found["text_features"])  # without dropout the same


@pytest.mark.parametrize("start, end", [(-0.5, 0.0), (3.0, 3.0), (9.0, math.log(100))])
def test_temperatures_stay_between_1_and_100(start, end):
    model = small(logit_scale=nn.Parameter(torch.tensor(start)), prototype_scale=nn.Parameter(torch.tensor(start)))
    model.clamp_scales()
    assert model.logit_scale.item() == pytest.approx(end) == model.prototype_scale.item()


@pytest.mark.parametrize("side", ["image", "text"])
def test_features_of_a_cache_stand_in_for_a_tower(side):
    """Half precision from the cache goes through the head as the tower's own features would."""
    model = small()
    tokens = model.tokenizer(["a dog", "x"])
    batch = {"images": torch.randint(0, 256, (2, 3, 4, 4), dtype=torch.uint8), "tokens": tokens}
    whole = model(batch)
    plain = model.encode_image(batch["images"], False) if side == "image" else model.encode_text(tokens, False)
    setattr(model, f"{side}_tower", CachedTower(plain.shape[1]))
    batch.pop({"image": "images", "text": "tokens"}[side])
    found = model(batch | {"teacher_features": plain.detach().half()})
    for name, value in whole.items():
        assert torch.allclose(found[name], value, atol=2e-3)
    assert (model.tokenizer is None) == (side == "text")


def test_checkpoints_say_which_towers_have_openai_gelu():
    quick, plain = Colours(), Words()
    quick.activation, plain.activation = "quick_gelu", "gelu"
    model = DualEncoder(quick, plain, nn.Identity(), nn.Identity())
    assert model.state_dict()["quick_gelu"].tolist() == [1, 0] and "mean" not in model.state_dict()
