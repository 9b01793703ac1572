"""Our CLIP image towers against open_clip's with the same weights, and the loading of published forms of files."""

import open_clip
import pytest
import torch
from open_clip.model import _build_vision_tower
from safetensors.torch import save_file
from torch import nn

from clip_vl.engine.errors import UserError
from clip_vl.models.clip.vit import PooledVisionTransformer, ViTConfig, resize_positions
from clip_vl.models.towers.image import build_image_tower
from clip_vl.models.towers.image_clip import SMALL, PooledResNet, image_config


def randomised(tower):
    """No path silent, no norm the identity."""
    torch.manual_seed(0)
    for module in tower.modules():
        if isinstance(module, (nn.BatchNorm2d, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.3, 0.6)
            nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    for name, parameter in tower.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    return tower.eval()


def open_clip_visual(name, resolution=None):
    config = open_clip.get_model_config(name)
    vision = config["vision_cfg"] | ({"image_size": resolution} if resolution else {})
    return randomised(_build_vision_tower(config["embed_dim"], vision, config.get("quick_gelu", False)))


def save(visual, path, **more):
    """A CLIP file: its image half, and something of the text half."""
    state = {f"visual.{key}": value.contiguous() for key, value in visual.state_dict().items()}
    save_file(state | {"logit_scale": torch.tensor(2.0), "positional_embedding": torch.zeros(77, 8)} | more, path)
    return path


@pytest.mark.parametrize("name, resolution", [("RN50", 64), ("ViT-S-32", 96), ("ViT-B-32-quickgelu", 64)])
@torch.no_grad()
def test_features_are_open_clips(name, resolution):
    theirs = open_clip_visual(name, resolution)
    ours = build_image_tower("clip", name, resolution=resolution).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, resolution, resolution)
    expected = theirs(images)
    assert ours.width == expected.shape[1] and expected.abs().max() > 0.05
    assert torch.allclose(ours(images), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_activation_is_the_one_asked_for():
    """GELU and QuickGELU differ by far more than the tolerance above."""
    gelu, quick = (build_image_tower("clip", "ViT-tiny", quick_gelu=quick).eval() for quick in (False, True))
    quick.load_state_dict(gelu.state_dict())
    images = torch.randn(1, 3, 112, 112)
    assert (gelu.activation, quick.activation) == ("gelu", "quick_gelu")
    assert (gelu(images) - quick(images)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["RN50x4", "RN50x16", "RN50x64", "RN101", "ViT-B-16", "ViT-L-14-336", "ViT-H-14",
                                  "ViT-bigG-14", "ViT-S-32-alt", "ViT-B/32", "ViT-L/14@336px"])  # fmt: skip
def test_names_shapes_and_sizes_are_open_clips(name):
    theirs_name = name.replace("/", "-").replace("@336px", "-336")
    with torch.device("meta"):
        ours, theirs = build_image_tower("clip", name), open_clip_visual(theirs_name)
    shapes = [{key: value.shape for key, value in tower.state_dict().items()} for tower in (ours, theirs)]
    assert shapes[0] == shapes[1]
    side = theirs.image_size if isinstance(theirs.image_size, int) else theirs.image_size[0]
    assert (ours.width, ours.resolution) == (theirs.output_dim, side)


@pytest.mark.parametrize("name, part", [
    ("EVA02-B-16", "timm_model_name"), ("coca_ViT-B-32", "attentional_pool"), ("ViT-L-14-CLIPA", "pool_type"),
    ("ViT-M-16-alt", "ls_init_value"),
])  # fmt: skip
def test_other_architectures_are_refused_with_the_builder_that_has_them(name, part):
    with pytest.raises(UserError, match=rf"{name} is not a plain CLIP image tower .*{part}.* openclip builder"):
        build_image_tower("clip", name)


def test_an_unknown_name_is_answered_with_ours():
    with pytest.raises(UserError, match="no architecture of open_clip's and none of RN-tiny, RN-micro, ViT-tiny"):
        build_image_tower("clip", "ViT-Z-99")


@pytest.mark.parametrize("name", SMALL)
def test_the_small_towers_take_their_images_and_learn(name):
    tower = build_image_tower("clip", name)
    features = tower(torch.randn(2, 3, tower.resolution, tower.resolution))
    assert features.shape == (2, 256) == (2, tower.width)
    features.square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in tower.parameters())


@torch.no_grad()
def test_a_file_is_loaded_without_its_text_half_and_half_precision_becomes_float(tmp_path):
    theirs = open_clip_visual("ViT-S-32")
    path = save(theirs.half(), tmp_path / "clip.safetensors")
    ours = build_image_tower("clip", "ViT-S-32", weights=path)
    assert ours.proj.dtype == torch.float32 and torch.equal(ours.proj, theirs.proj.float())


@pytest.mark.parametrize("name, key", [("ViT-S-32", "positional_embedding"), ("RN50", "attnpool.positional_embedding")])
@torch.no_grad()
def test_positions_of_a_file_are_resized_to_the_resolution(name, key, tmp_path):
    path = save(open_clip_visual(name), tmp_path / "clip.safetensors")
    native = build_image_tower("clip", name, weights=path).eval()
    smaller = build_image_tower("clip", name, weights=path, resolution=96).eval()
    assert torch.equal(smaller.get_parameter(key), resize_positions(native.get_parameter(key), 3, 3))
    images = torch.randn(1, 3, 96, 96)
    assert torch.allclose(smaller(images), native(images), atol=1e-6)  # the native table is resized on the way


def test_a_file_of_another_tower_is_a_table_of_differences(tmp_path):
    path = save(open_clip_visual("ViT-S-32"), tmp_path / "clip.safetensors")
    with pytest.raises(UserError, match=r"(?s)clip.safetensors \(image tower ViT-M-32\) does not fit:.*proj"):
        build_image_tower("clip", "ViT-M-32", weights=path)


class Holder(nn.Module):
    """OpenAI's files are scripted modules with `visual`; what it computes does not matter to a reader of weights."""

    def __init__(self, visual):
        super().__init__()
        self.visual = nn.Module()
        for name, value in visual.state_dict().items():
            module, path = self.visual, name.split(".")
            for part in path[:-1]:
                if not hasattr(module, part):
                    module.add_module(part, nn.Module())
                module = getattr(module, part)
            module.register_buffer(path[-1], value)

    def forward(self, x: torch.Tensor):
        return x


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")
def test_openais_archive_is_quick_gelu_and_cannot_be_taken_for_gelu(tmp_path):
    theirs = open_clip_visual("ViT-S-32")
    torch.jit.save(torch.jit.script(Holder(theirs)), tmp_path / "clip.pt")
    ours = build_image_tower("clip", "ViT-S-32", weights=tmp_path / "clip.pt")
    assert ours.activation == "quick_gelu" and torch.equal(ours.proj, theirs.proj)
    with pytest.raises(UserError, match=r"archive of OpenAI's .QuickGELU., but the tag laion2b_s34b_b79k of ViT-B-32"):
        build_image_tower("clip", "ViT-B-32", tag="laion2b_s34b_b79k", weights=tmp_path / "clip.pt")


@pytest.mark.parametrize("make", [
    lambda recompute: PooledVisionTransformer(ViTConfig(3, 128, 16, 3), 32, recompute),
    lambda recompute: PooledResNet(image_config("RN-micro").grid, 32, 3, checkpoint_backbone=recompute),
], ids=["ViT", "RN"])  # fmt: skip
def test_recomputing_changes_no_gradient(make):
    plain, frugal = make(False), make(True)
    frugal.load_state_dict(plain.state_dict())
    images = torch.randn(2, 3, 48, 48)
    for tower in (plain, frugal):
        tower(images).square().sum().backward()
    assert all(torch.allclose(a.grad, b.grad, atol=1e-6) for a, b in zip(plain.parameters(), frugal.parameters()))


def test_the_flag_reaches_the_tower():
    assert build_image_tower("clip", "RN-micro", checkpointing=True).checkpoint_backbone
    assert not build_image_tower("clip", "ViT-tiny").checkpoint_backbone
