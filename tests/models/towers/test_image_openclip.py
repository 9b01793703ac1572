"""open_clip's towers: the visual half alone, with its weights, statistics and activation."""

import json

import open_clip
import pytest
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import save_file

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.clip.activations import published_preprocessing
from clip_vl.models.towers.image import build_image_tower
from clip_vl.models.towers.pixels import Pixels, published_pixels

# One of each kind: plain, CoCa, sin-cos positions, and timm trunks of several families.
KINDS = ["RN50", "ViT-B-32", "ViT-M-16-alt", "ViT-L-14-CLIPA", "coca_ViT-B-32", "xlm-roberta-base-ViT-B-32",
         "EVA02-B-16", "PE-Core-T-16-384", "ViTamin-S", "convnext_tiny", "swin_base_patch4_window7_224",
         "vit_medium_patch16_gap_256", "MobileCLIP-S1", "ViT-B-16-SigLIP", "ViT-B-16-SigLIP2"]  # fmt: skip


def save(visual, path):
    save_file({f"visual.{k}": v.contiguous() for k, v in visual.state_dict().items()} | {"x": torch.zeros(2)}, path)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_architecture_gives_its_embedding(name):
    config = open_clip.get_model_config(name)
    with torch.device("meta"):
        tower = build_image_tower("openclip", name)
    assert tower.width == config["embed_dim"]
    assert tower.resolution == config["vision_cfg"].get("image_size", 224)
    assert not any("token_embedding" in key or "text" in key for key, _ in tower.named_parameters())


@pytest.mark.parametrize("name", ["ViT-S-32", "RN50-quickgelu", "convnext_tiny"])
@torch.no_grad()
def test_features_are_those_of_the_file(name, tmp_path):
    config = open_clip.get_model_config(name)
    vision = config["vision_cfg"] | ({"timm_model_pretrained": False} if name.startswith("conv") else {})
    theirs = _build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False)).eval()
    tower = build_image_tower("openclip", name, weights=save(theirs, tmp_path / "clip.safetensors")).eval()
    images = torch.randn(1, 3, 224, 224)
    assert torch.equal(tower(images), theirs(images))


def test_positions_of_a_file_are_resized(tmp_path):
    config = open_clip.get_model_config("ViT-S-32")
    theirs = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
    path = save(theirs, tmp_path / "clip.safetensors")
    ours, own = (build_image_tower(b, "ViT-S-32", weights=path, resolution=96) for b in ("openclip", "clip"))
    assert ours.resolution == 96
    assert torch.allclose(ours.model.positional_embedding, own.positional_embedding, atol=1e-6)


def test_statistics_come_from_the_tag():
    with torch.device("meta"):
        plain = build_image_tower("openclip", "ViT-B-32")
        siglip = build_image_tower("openclip", "ViT-B-16-SigLIP", tag="webli")
    assert plain.mean == open_clip.OPENAI_DATASET_MEAN and plain.std == open_clip.OPENAI_DATASET_STD
    assert (plain.interpolation, plain.crop, plain.short_side) == ("bicubic", "short_side", 224)
    assert (siglip.mean, siglip.std, siglip.crop) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash")


def test_weights_by_path_get_what_all_tags_of_their_architecture_agree_on():
    """SigLIP's file without a tag scored with CLIP's statistics and crop, which nothing said."""
    of = lambda name, **more: published_pixels(published_preprocessing(name, **more), 224)  # noqa: E731
    half = (0.5, 0.5, 0.5)
    assert of("ViT-B-16-SigLIP", weights="file") == Pixels(224, half, half, "bicubic", "squash")
    assert of("PE-Core-B-16", weights="file") == Pixels(224, half, half, "bilinear", "squash")
    assert of("ViT-B-16-SigLIP") == of("ViT-L-14", weights="file") == Pixels(224)  # a new tower; tags that disagree
    assert of("ViT-L-14", tag="laion2b_s32b_b82k").mean == half


def test_quick_gelu_by_name_tag_and_flag():
    with torch.device("meta"):
        for options in ({}, {"tag": "openai"}, {"quick_gelu": True}):
            tower = build_image_tower("openclip", "ViT-B-32", **options)
            kind = type(tower.model.transformer.resblocks[0].mlp.gelu).__name__
            assert (kind, tower.activation) == (("QuickGELU", "quick_gelu") if options else ("GELU", "gelu"))
        assert build_image_tower("openclip", "ViT-B-32-quickgelu").activation == "quick_gelu"
        with pytest.raises(UserError, match="quick_gelu is for CLIP's own architectures; convnext_tiny is timm's"):
            build_image_tower("openclip", "convnext_tiny", quick_gelu=True)


def test_missing_weights_are_named_with_their_place(tmp_path):
    with pytest.raises(UserError, match=rf"ViT-B-32 \(openai\) are not on this machine: .*at {tmp_path}/ViT-B-32.pt,"):
        build_image_tower("openclip", "ViT-B-32", tag="openai", pretrained=True, cache_dir=tmp_path)
    with pytest.raises(UserError, match="need a tag, such as openai"):
        build_image_tower("openclip", "ViT-B-32", pretrained=True)
    with pytest.raises(UserError, match=r"nowhere.pt is missing"):
        build_image_tower("openclip", "ViT-S-32", weights=tmp_path / "nowhere.pt")


def test_a_tags_file_is_found_in_the_cache(tmp_path):
    config = open_clip.get_model_config("RN50")
    theirs = _build_vision_tower(config["embed_dim"], config["vision_cfg"])
    torch.save({f"visual.{key}": value for key, value in theirs.state_dict().items()}, tmp_path / "RN50.pt")
    for builder in ("openclip", "clip"):
        tower = build_image_tower(builder, "RN50", tag="openai", pretrained=True, cache_dir=tmp_path)
        weight = tower.model.conv1.weight if builder == "openclip" else tower.conv1.weight
        assert torch.equal(weight, theirs.conv1.weight)


def test_a_local_folder_brings_architecture_statistics_and_weights(tmp_path):
    config = open_clip.get_model_config("ViT-S-32") | {"quick_gelu": True}
    statistics = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear"}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": statistics}))
    with pytest.raises(UserError, match=r"put open_clip_model.safetensors at"):
        build_image_tower("openclip", str(tmp_path), pretrained=True)
    theirs = _build_vision_tower(config["embed_dim"], config["vision_cfg"], True)
    save(theirs, tmp_path / "open_clip_model.safetensors")
    tower = build_image_tower("openclip", str(tmp_path), pretrained=True)
    assert (tower.mean, tower.interpolation, tower.activation) == ((0.1, 0.2, 0.3), "bilinear", "quick_gelu")
    assert torch.equal(tower.model.proj, theirs.proj)
    (tmp_path / "open_clip_config.json").write_text("{}")
    with pytest.raises(DataError, match="has no model_cfg"):
        build_image_tower("openclip", str(tmp_path))


def test_unknown_names_and_unsupported_options_are_sentences():
    with pytest.raises(UserError, match="ViT-Z-9 is no architecture of open_clip's"):
        build_image_tower("openclip", "ViT-Z/9")
    with torch.device("meta"), pytest.raises(UserError, match="open_clip's RN50 cannot recompute"):
        build_image_tower("openclip", "RN50", checkpointing=True)
    with torch.device("meta"):
        assert build_image_tower("openclip", "ViT-B-32", checkpointing=True).model.transformer.grad_checkpointing
