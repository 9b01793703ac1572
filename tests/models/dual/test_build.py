"""From flags to dual encoders: where weights come from, what is frozen, and what keys of caches tell apart."""

import json
import math

import pytest
import torch

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.dual import foreign
from clip_vl.models.dual.build import build_dual_encoder, frozen_digest, read_dual_encoder
from clip_vl.models.dual.encoder import CachedTower
from clip_vl.models.dual.spec import LossNeeds, Projection, dual_spec
from clip_vl.models.dual.training import average_weights
from clip_vl.models.loading.clip_exchange import to_openclip


@pytest.fixture(scope="module")
def vocab(tmp_path_factory):
    """The folder of a small vocabulary: with CLIP's the word vectors alone would have 13 million numbers."""
    folder = tmp_path_factory.mktemp("vocab")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cat", "dog", "red"]
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    return folder


@pytest.fixture
def flags(vocab):
    """A function of flags by name -> the `DualSpec` of them and of the smallest towers."""

    def of(**changed):
        given = {"image_model": "RN-micro", "text_model": "RN-micro", "image_resolution": 32, "text_vocab": str(vocab)}
        return dual_spec(given | {"seed": 9595} | changed)

    return of


SCALE = LossNeeds(scale=True)


def same(one, two):
    one, two = one.state_dict(), two.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def saved(model, path, drop=()):
    state = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith(drop or ("-",))}
    torch.save({"state_dict": state}, path)
    return str(path)


def test_first_weights_hang_on_the_seed_alone(flags):
    """Not on what was drawn before, nor on the other tower: a study that changes one tower keeps the other."""
    one = build_dual_encoder(flags(image_head_n_layers=1, text_head_n_layers=1, joint_projection_dim=8))
    torch.rand(3)
    two = build_dual_encoder(flags(image_model="RN-tiny", image_resolution=64, text_head_n_layers=1,
                                   image_head_n_layers=1, joint_projection_dim=8))  # fmt: skip
    assert same(one.text_tower, two.text_tower) and not torch.equal(torch.rand(1), torch.rand(1))
    other = build_dual_encoder(flags(seed=1))
    assert not same(one.text_tower, other.text_tower) and not same(one.image_tower, other.image_tower)


def test_a_checkpoint_brings_all_weights_and_its_gelu(flags, tmp_path):
    """Shapes cannot tell OpenAI's GELU: who rebuilds a model with the other one gets other features, silently."""
    towers = {"image_model": "ViT-tiny", "text_model": "ViT-tiny", "image_resolution": 48}
    model = build_dual_encoder(flags(**towers, force_quick_gelu=True, seed=5), SCALE)
    path = saved(model, tmp_path / "epoch_1.pt")
    again = build_dual_encoder(flags(**towers, load=path), SCALE).eval()
    assert same(model, again) and again.quick_gelu.tolist() == [1, 1]
    plain = build_dual_encoder(flags(**towers, seed=5), SCALE).eval()
    images = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        features = [m.encode_image(images) for m in (model.eval(), again, plain)]
        texts = [m.encode_text(["red cat"]) for m in (model, again, plain)]
    assert torch.equal(*features[:2]) and not torch.allclose(features[0], features[2], atol=1e-6)
    assert torch.equal(*texts[:2]) and not torch.allclose(texts[0], texts[2], atol=1e-6)


def test_a_file_with_open_clips_names_is_the_same_model(flags, tmp_path):
    model = build_dual_encoder(flags(seed=3), SCALE)
    state = {k.replace("image_tower.", "visual.").replace("text_tower.", ""): v for k, v in model.state_dict().items()}
    state.pop("quick_gelu")
    torch.save({"state_dict": state | {"context_length": torch.tensor(77), "attn_mask": torch.zeros(2, 2)}},
               tmp_path / "open_clip.pt")  # fmt: skip
    assert same(model, build_dual_encoder(flags(load=str(tmp_path / "open_clip.pt")), SCALE))


def test_names_of_others_are_those_of_our_converter(flags, tmp_path):
    model = build_dual_encoder(flags(image_model="ViT-tiny", image_resolution=48), SCALE)
    torch.save(to_openclip(model.state_dict()), tmp_path / "open_clip.pt")
    read = read_dual_encoder(tmp_path / "open_clip.pt")
    assert read.pop("quick_gelu").tolist() == [0, 0]
    assert all(torch.equal(read[name], tensor) for name, tensor in model.state_dict().items() if name in read)
    assert read.keys() == model.state_dict().keys() - {"quick_gelu"}


@pytest.mark.parametrize("is_custom", [False, True])
def test_a_file_of_open_clips_gives_its_features_in_towers_of_its_builder(flags, tmp_path, is_custom):
    open_clip = pytest.importorskip("open_clip")
    sizes = {"vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
             "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}  # fmt: skip
    if is_custom:  # CustomTextCLIP, and a text tower that is not CLIP's own
        sizes["text_cfg"]["pad_id"], sizes["text_cfg"]["pool_type"] = 0, "last"
    theirs = (open_clip.CustomTextCLIP if is_custom else open_clip.CLIP)(embed_dim=8, **sizes).eval()
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": {"embed_dim": 8, **sizes}}))
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    names = {f"{side}_model": str(tmp_path) for side in ("image", "text")}
    names |= {f"{side}_model_builder": "openclip" for side in ("image", "text")}
    given = flags(**names, load=str(tmp_path / "theirs.pt"), text_vocab=None, image_resolution=None)
    ours = build_dual_encoder(given, SCALE).eval()
    pixels, tokens = torch.randn(2, 3, 32, 32), open_clip.tokenize(["a cat", "red dogs"], 8)
    with torch.no_grad():
        assert torch.allclose(ours.encode_image(pixels), theirs.encode_image(pixels, normalize=True), atol=1e-6)
        assert torch.allclose(ours.encode_text(["a cat", "red dogs"]), theirs.encode_text(tokens, normalize=True),
                              atol=1e-6)  # fmt: skip


def test_a_file_of_others_has_the_preprocessing_of_its_published_siblings(flags, tmp_path, monkeypatch):
    """SigLIP's mean and std are 0.5, and its images are squashed, whether --load or --image_weights names its file."""
    given = {"image_model_builder": "openclip", "image_model": "RN50", "image_resolution": 64,
             "image_head_n_layers": 1, "text_head_n_layers": 1, "joint_projection_dim": 8}  # fmt: skip
    path = saved(build_dual_encoder(flags(**given)), tmp_path / "whole.pt")
    siglip = foreign.published_preprocessing("ViT-B-16-SigLIP", weights=True)
    assert siglip["mean"] == (0.5, 0.5, 0.5) and siglip["resize_mode"] == "squash"
    monkeypatch.setattr(foreign, "published_preprocessing", lambda name, weights: siglip)
    tower = build_dual_encoder(flags(**given, load=path)).image_tower
    assert (tower.mean, tower.crop, tower.resolution) == ((0.5, 0.5, 0.5), "squash", 64)


@pytest.mark.parametrize("drop, sentence", [
    (("image_tower.", "text_tower."), "is no dual encoder's: it has no weight named image_tower. or text_tower."),
    (("image_tower.",), "has no image tower, whose features were cached: say where its weights are"),
])  # fmt: skip
def test_a_file_that_is_no_whole_model_is_refused(flags, tmp_path, drop, sentence):
    path = saved(build_dual_encoder(flags()), tmp_path / "part.pt", drop)
    with pytest.raises(UserError, match=sentence):
        build_dual_encoder(flags(load=path))


def test_a_checkpoint_of_other_shapes_is_refused(flags, tmp_path):
    """A model is never filled in part and left random for the rest."""
    path = saved(build_dual_encoder(flags()), tmp_path / "small.pt")
    with pytest.raises((UserError, DataError), match=r"(?s)image_tower\."):
        build_dual_encoder(flags(load=path, image_model="RN-tiny"))


def test_losses_bring_what_they_need_where_it_starts(flags):
    assert not hasattr(build_dual_encoder(flags()), "logit_scale")
    own = build_dual_encoder(flags(), SCALE).logit_scale.item()
    assert own == pytest.approx(math.log(1 / 0.07), abs=1e-4)  # CLIP's, arXiv:2103.00020, section 2.5
    sigmoid = build_dual_encoder(flags(), LossNeeds(scale=True, bias=True))
    assert sigmoid.logit_scale.exp().item() == pytest.approx(10) and sigmoid.logit_bias.item() == -10.0
    model = build_dual_encoder(flags(), LossNeeds(prototypes=6, projection=Projection(1, 8, 4)))
    assert same(model.image_projection, model.text_projection)  # ProtoCLIP starts from a copy
    tokens = model.tokenizer(["cat", "dog"])
    found = model({"images": torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "tokens": tokens})
    assert found["image_scores"].shape == (2, 6) and found["text_projected"].shape == (2, 4)


def learning(module):
    return any(parameter.requires_grad for parameter in module.parameters())


def test_what_is_locked_does_not_learn(flags):
    heads = {"image_head_n_layers": 1, "text_head_n_layers": 1, "joint_projection_dim": 8}
    model = build_dual_encoder(flags(**heads, lock_image_model=True))
    assert not learning(model.image_tower) and learning(model.image_head) and learning(model.text_tower)
    model.train()
    assert not model.image_tower.training and model.text_tower.training  # batch statistics stay as they are
    model = build_dual_encoder(flags(**heads), LossNeeds(one_way="text"))
    assert not learning(model.text_tower) and not learning(model.text_head) and learning(model.image_tower)
    model = build_dual_encoder(flags(lock_text_partial="token_embedding"))
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    assert frozen == ["text_tower.token_embedding.weight"]


def test_an_adapter_and_a_locked_text_tower_contradict_each_other(flags, monkeypatch):
    from clip_vl.models.dual import build as dual_build

    monkeypatch.setattr(dual_build, "build_text_tower", lambda *_, **__: CachedTower(256))
    with pytest.raises(UserError, match="do not lock it as well"):
        build_dual_encoder(flags(adapter="lora_adapter", lock_text_model=True))


def test_the_key_of_a_cache_is_that_of_weights_and_pixels(flags):
    tower = build_dual_encoder(flags()).image_tower
    same_tower = build_dual_encoder(flags(text_model="ViT-tiny")).image_tower
    assert frozen_digest(tower) == frozen_digest(same_tower)
    for change in ({"seed": 1}, {"image_resolution": 48}):
        assert frozen_digest(tower) != frozen_digest(build_dual_encoder(flags(**change)).image_tower)
    before = frozen_digest(tower)
    tower.mean = (0.0, 0.0, 0.0)
    assert frozen_digest(tower) != before


def test_the_average_of_weights_by_hand():
    """From 1 with decay 0.9 towards 2 and then 4: 1.1, then 0.9 * 1.1 + 0.1 * 4; the first weights count."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(model.weight)
    average = average_weights(model, 0.9)
    for value, expected in ((2.0, 1.1), (4.0, 1.39)):
        torch.nn.init.constant_(model.weight, value)
        average.update_parameters(model)
        assert average.module.weight.item() == pytest.approx(expected)
