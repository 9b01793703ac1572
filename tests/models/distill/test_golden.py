"""The distilled models against the golden vectors of the published code, and the published parameter counts."""

import dataclasses
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_vl.losses.distill.layers import layer_average, layer_distillation
from clip_vl.models.distill.beit import Beit, BeitSpec, relative_index
from clip_vl.models.distill.blocks import PreNormBlock
from clip_vl.models.distill.files import read_beitv2, read_data2vec2
from clip_vl.models.distill.image_encoder import ImageEncoder, ImageEncoderSpec
from clip_vl.models.distill.student import Student, StudentSpec
from clip_vl.models.fused.bert import attention_bias

FOLDER = Path(os.environ.get("CLIP_VL_REAL_DATA", "../shared/data")) / "golden"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="CLIP_VL_REAL_DATA has no golden/")
SMALL = ImageEncoderSpec(blocks=3, width=48, heads=4, hidden=192, resolution=64)


@pytest.fixture(scope="module")
def golden():
    return json.loads((FOLDER / "dev_smke.json").read_text())


@pytest.fixture(scope="module")
def shapes():
    return json.loads((FOLDER / "dev_smke_shapes.json").read_text())


def fill(shapes):
    """{name: tensor} by the golden file's rule; `shapes`: {checkpoint name: shape}."""
    found = {}
    for place, name in enumerate(sorted(shapes)):
        draw = np.random.RandomState(17000 + place).standard_normal(int(np.prod(shapes[name])))
        draw = draw.reshape(shapes[name]) * (0.12 if len(shapes[name]) > 1 else 0.1)
        plain = len(shapes[name]) == 1 and name.endswith("weight")
        found[name] = torch.from_numpy(draw + plain).float()
    return found


def image(shape, seed):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape).astype("float32"))


def data2vec2_file(path, spec, prenet=0):
    """A file in fairseq's layout with the golden weights; its first `prenet` blocks lie in the modality encoder."""
    names = {
        "cls_token": "extra_tokens",
        "patch_embed.proj.weight": "local_encoder.proj.weight",
        "patch_embed.proj.bias": "local_encoder.proj.bias",
        "pos_embed": "fixed_positional_encoder.positions",
        "norm_pre.weight": "context_encoder.norm.weight",
        "norm_pre.bias": "context_encoder.norm.bias",
    }
    shapes = {(f"modality_encoders.IMAGE.{names[name]}" if name in names else name): list(tensor.shape)
              for name, tensor in ImageEncoder(spec).state_dict().items()}  # fmt: skip
    state = fill(shapes)
    moved = {}
    for name, tensor in state.items():
        if prenet and name.startswith("blocks."):
            block, rest = name.removeprefix("blocks.").split(".", 1)
            inner = f"modality_encoders.IMAGE.context_encoder.blocks.{block}.{rest}"
            name = inner if int(block) < prenet else f"blocks.{int(block) - prenet}.{rest}"
        moved[name] = tensor
    moved["modality_encoders.IMAGE.decoder.blocks.0.0.weight"] = torch.zeros(3)
    moved["_ema"] = {"blocks.0.norm1.weight": torch.zeros(3)}
    torch.save({"cfg": {"model": "data2vec_multi"}, "model": moved}, path)
    return path


def data2vec2(path, spec, prenet=0):
    state, dropped = read_data2vec2(data2vec2_file(path, SMALL, prenet), spec.blocks)
    encoder = ImageEncoder(spec)
    encoder.load_state_dict(state)
    return encoder.eval(), dropped


@pytest.mark.parametrize("prenet", [0, 2])
def test_the_image_encoder_is_data2vec2s_in_both_checkpoint_layouts(golden, tmp_path, prenet):
    expected = golden["data2vec2_image"]
    encoder, dropped = data2vec2(tmp_path / "base_imagenet.pt", SMALL, prenet)
    assert dropped == {"decoder": 1}
    with torch.no_grad():
        images = image((2, 3, 64, 64), 7)
        states, tokens = encoder.block_states(images), encoder(images)
        ffn = encoder.block_states(images, "ffn")[0]
    for state, cls in zip(states, expected["cls_after_block"]):
        torch.testing.assert_close(state[:, 0, :12], torch.tensor(cls), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens[:, 1:4, :8], torch.tensor(expected["tokens_1_3_of_last"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        ffn[:, :3, :8], torch.tensor(expected["ffn_target_block0_tokens_0_2"]), rtol=1e-5, atol=1e-5
    )
    assert tokens.abs().sum().item() == pytest.approx(expected["abs_sum_last"], rel=1e-5)
    with torch.no_grad():  # the last block may compute the class token alone
        torch.testing.assert_close(encoder(images, queries=1), tokens[:, :1], rtol=1e-5, atol=1e-5)


def test_layer_targets_are_the_published_ones(golden, tmp_path):
    """The student is the teacher's first 2 of 3 blocks; text: the same rule without the last norm, on real tokens."""
    teacher, _ = data2vec2(tmp_path / "base_imagenet.pt", SMALL)
    student, dropped = data2vec2(tmp_path / "base_imagenet.pt", dataclasses.replace(SMALL, blocks=2))
    assert dropped["later blocks"] == 12
    expected = golden["data2vec2_image"]["image_kd"]
    with torch.no_grad():
        images = image((2, 3, 64, 64), 7)
        states = student.block_states(images), teacher.block_states(images)
    names = "student_from_first_2_blocks_sample0_tok0_2", "target_from_3_blocks_sample0_tok0_2"
    for side, name in zip(states, names):
        given = layer_average(side)[0, :3, :8]
        torch.testing.assert_close(given, torch.tensor(expected[name]), rtol=1e-5, atol=1e-5)
    assert layer_distillation(*states).item() == pytest.approx(expected["mse"], rel=1e-5)
    mask = (torch.arange(17) < torch.tensor([[10], [15]])).int()
    found = layer_distillation(*states, mask, final_norm=False)
    assert found.item() == pytest.approx(golden["data2vec2_image"]["text_kd"]["mse_on_real_tokens"], rel=1e-5)


def test_the_teacher_is_beitv2_with_its_relative_positions(golden, tmp_path):
    expected = golden["beitv2"]
    spec = BeitSpec(blocks=2, width=48, heads=4, hidden=192, resolution=64)
    teacher = Beit(spec)
    own = {name.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): list(p.shape)
           for name, p in teacher.named_parameters()}  # fmt: skip
    own |= {"mask_token": [1, 1, 48], "norm.weight": [48], "norm.bias": [48], "lm_head.weight": [32, 48],
            "lm_head.bias": [32]}  # fmt: skip
    assert len(own) == expected["n_params"]
    state = fill(own) | {"rel_pos_bias.relative_position_index": relative_index(4)}
    torch.save({"model": state | {"cls_pt_layers.0.gamma_1": torch.zeros(48)}}, tmp_path / "beitv2.pth")
    state, dropped = read_beitv2(tmp_path / "beitv2.pth")
    assert dropped == {"mask_token": 1, "norm": 2, "lm_head": 2, "cls_pt_layers": 1}
    teacher.load_state_dict(state)
    index = relative_index(4)
    assert index[:3].tolist() == expected["relative_position_index_rows_0_1_2"]
    assert index.sum() == expected["index_sum"]
    with torch.no_grad():
        cls = teacher.eval()(image((2, 3, 64, 64), 7))
        whole = teacher.tokens(image((2, 3, 64, 64), 7))
    torch.testing.assert_close(cls[:, :16], torch.tensor(expected["cls"]), rtol=1e-5, atol=1e-5)
    assert whole.abs().sum().item() == pytest.approx(expected["abs_sum"], rel=1e-5)
    unit = torch.nn.functional.normalize(cls, dim=-1)[:, :8]
    torch.testing.assert_close(unit, torch.tensor(expected["cls_normalised_0_8"]), rtol=1e-5, atol=1e-5)


def test_the_shared_block_masks_padding_and_gives_its_first_layer(golden):
    expected, block = golden["shared_block"], PreNormBlock(48, 4, 192, layer_scale=0.2)
    assert sorted(block.state_dict()) == expected["sorted_names"]
    block.load_state_dict(fill({name: list(p.shape) for name, p in block.named_parameters()}))
    x, bias = image((2, 7, 48), 9), attention_bias(1 - torch.tensor(expected["mask"]))
    with torch.no_grad():
        masked, inner = block(x, bias, queries=1)
        plain, _ = block(x)
        x[torch.tensor(expected["mask"]) == 1] = 5.0  # other content in the padding
        assert (block(x, bias, queries=1)[0] - masked).abs().max() == expected["cls_change_when_pad_content_changes"]
    torch.testing.assert_close(inner[:, 0, :12], torch.tensor(expected["x_interm_cls_first12"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(masked[:, 0, :12], torch.tensor(expected["cls_masked_first12"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(plain[:, 0, :12], torch.tensor(expected["cls_unmasked_first12"]), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(inner[:, 0].norm(dim=1), torch.tensor(expected["x_interm_cls_l2"]), rtol=1e-5, atol=0)


def test_parameters_are_those_of_the_published_model(shapes):
    with torch.device("meta"):
        student, teacher = Student(StudentSpec()), Beit(BeitSpec(), final_norm=True)
    published = shapes["s_smke_student (state_dict keys have the prefix model.)"]
    expected = {}
    for name, shape in published["shapes"].items():
        repeated = str(shape[-1]).startswith("x") if shape else False
        for i in range(int(shape[-1][1:])) if repeated else [None]:
            expected[name if i is None else name.replace("{i}", str(i))] = shape[:-1] if repeated else shape
    assert {name: list(tensor.shape) for name, tensor in student.state_dict().items()} == expected
    assert sum(p.numel() for p in student.parameters()) == published["parameters"] == 117_318_146
    mim_head = 768 + 8192 * 768 + 8192  # mask token and the head that predicts visual tokens
    assert sum(p.numel() for p in teacher.parameters()) + mim_head == shapes["beitv2_pt1k_model"]["parameters"]
