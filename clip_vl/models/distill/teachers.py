"""Frozen image teachers: what a student is to reproduce of an image, and which pixels the teacher expects."""

from dataclasses import dataclass

import torch
from torch import nn

from clip_vl.engine.errors import DataError, UserError
from clip_vl.models.distill.beit import Beit, BeitSpec
from clip_vl.models.distill.files import fit_weights, read_beitv2, read_data2vec2, read_tensors
from clip_vl.models.distill.image_encoder import ImageEncoder, ImageEncoderSpec

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEACHERS = ("beitv2", "data2vec2", "dino", "supervised", "none")


@dataclass(frozen=True)
class TeacherSpec:
    """Which teacher, and where its weights are.

    kind:       one of `TEACHERS`
    checkpoint: the file of its weights; "" leaves random weights (tests, and the built-in data)
    name:       the timm model of a supervised teacher
    final_norm: BEiTv2's class token goes through the final LayerNorm
    """

    kind: str = "beitv2"
    checkpoint: str = ""
    name: str = "resnet50.a1_in1k"
    final_norm: bool = False
    resolution: int = 224


class Teacher(nn.Module):
    """A frozen model, always in evaluation mode: normalised images (B, 3, H, W) -> targets (B, width), raw.

    mean, std: the statistics that its images are normalised by
    """

    def __init__(self, model, width, mean=IMAGENET_MEAN, std=IMAGENET_STD):
        super().__init__()
        self.model, self.width, self.mean, self.std = model.requires_grad_(False).eval(), width, mean, std

    @torch.no_grad()
    def forward(self, images):
        return self.model(images)

    def train(self, mode=True):
        """Stays in evaluation mode."""
        return super().train(False)


class ClassToken(nn.Module):
    """The class token of the last block of an `ImageEncoder`."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def forward(self, images):
        return self.encoder(images, queries=1)[:, 0]


def build_teacher(spec):
    """The `Teacher` of a `TeacherSpec`; None for the kind "none"."""
    if spec.kind == "none":
        return None
    builders = {"beitv2": _beitv2, "data2vec2": _data2vec2, "dino": _dino, "supervised": _supervised}
    if spec.kind not in builders:
        raise UserError(f"--teacher {spec.kind} is not one of {', '.join(TEACHERS)}")
    return builders[spec.kind](spec)


def _beitv2(spec):
    model = Beit(BeitSpec(resolution=spec.resolution), spec.final_norm)
    if spec.checkpoint:
        index = model.rel_pos_bias.relative_position_index.clone()
        state, _ = read_beitv2(spec.checkpoint, spec.final_norm)
        fit_weights(model, state, spec.checkpoint)
        if not torch.equal(model.rel_pos_bias.relative_position_index, index):
            raise DataError(f"{spec.checkpoint}: its relative positions are not in BEiT's order")
    return Teacher(model, model.spec.width)


def _data2vec2(spec):
    encoder = ImageEncoder(ImageEncoderSpec(blocks=12, resolution=spec.resolution))
    if spec.checkpoint:
        fit_weights(encoder, read_data2vec2(spec.checkpoint, 12)[0], spec.checkpoint)
    return Teacher(ClassToken(encoder), encoder.spec.width)


def _dino(spec):
    import timm

    model = timm.create_model("vit_base_patch16_224.dino", pretrained=False, num_classes=0, img_size=spec.resolution)
    if spec.checkpoint:
        fit_weights(model, read_tensors(spec.checkpoint), spec.checkpoint)
    return Teacher(model, model.num_features)


def _supervised(spec):
    """A timm classifier with its head: the targets are its class logits."""
    import timm

    try:
        model = timm.create_model(spec.name, pretrained=False)
    except (RuntimeError, ValueError) as error:  # an unknown architecture or tag
        raise UserError(f"timm has no {spec.name}: {error}; timm.list_models() names its models") from error
    if spec.checkpoint:
        fit_weights(model, in_order(read_tensors(spec.checkpoint), model.state_dict()), spec.checkpoint)
    data = timm.data.resolve_model_data_config(model)
    return Teacher(model, model.num_classes, data["mean"], data["std"])


def in_order(state, own):
    """`state` under the model's names if both have the same shapes in the same order and other names; else as it is."""
    shapes = [[tuple(tensor.shape) for tensor in tensors.values()] for tensors in (state, own)]
    return dict(zip(own, state.values())) if state.keys() != own.keys() and shapes[0] == shapes[1] else state
