"""The losses that align two towers, held to the published code's values on a few numbers made of sines."""

import math

import pytest
import torch

from clip_vl.engine.errors import UserError
from clip_vl.losses.alignment import LOSSES, build_loss, loss_class
from clip_vl.losses.base import unit

SCALE, LABELS = 1 / 0.07, torch.tensor([7, 7, -1, 3])


def waves(rows, function, start, step):
    """function(start + step * n), n = 0, 1, ... along the rows of a (rows, 3) matrix."""
    return function(start + step * torch.arange(rows * 3, dtype=torch.float64).view(rows, 3))


TEACHER, STUDENT = waves(4, torch.sin, 1, 1), waves(4, torch.cos, 2, 1.7)
TEACHER_QUEUE, STUDENT_QUEUE = unit(waves(5, torch.sin, 0.5, 1.3)), unit(waves(5, torch.cos, 0.3, 0.9))
LONG_QUEUE = unit(waves(8, torch.sin, 0.5, 1.3))
SMALL = {"queue_size": 5, "n_prototypes": 3}

GOLDEN = [
    ("InfoNCE", {}, {}, 11.961793),
    ("UniCL", {}, {}, 10.235446),
    ("SigLIP", {}, {}, 12.200746),
    ("SimReg", {"variant": "original"}, {}, 0.811081),
    ("SimReg", {}, {}, 3 * 0.811081),
    ("SimReg-L1", {}, {}, 0.715761),
    ("SimReg-SmoothL1", {}, {}, 0.370549),
    ("VICReg", {"variant": "original"}, {}, 30.115688),
    ("VICReg", {}, {}, 36.650345),
    ("BarlowTwins", {"variant": "original"}, {}, 3.247516),
    ("BarlowTwins", {}, {}, 4.333052),
    ("RKD", {}, {}, 0.233897),
    ("RKD", {"w_rkd_d": 1, "w_rkd_a": 0}, {}, 0.214866),
    ("RKD", {"w_rkd_d": 0, "w_rkd_a": 1}, {}, 0.126465),
    ("CompRess-1q", {}, {"teacher_queue.features": TEACHER_QUEUE}, 26.458309),
    ("CompRess-2q", {}, {"teacher_queue.features": TEACHER_QUEUE, "student_queue.features": STUDENT_QUEUE}, 18.751659),
    ("SEED", {"queue_size": 8}, {"queue.features": LONG_QUEUE}, 16.226101),
    ("DINO", {}, {"center": torch.tensor([0.1, 0.2, 0.3])}, 10.024667),
    ("ProtoCPC", {}, {"prior": torch.tensor([0.5, 1, 1.5])}, 10.766023),
    ("ProtoCPC", {"sinkhorn": True}, {"prior": torch.tensor([0.5, 1, 1.5])}, 10.637444),
]


def built(name, options=(), state=()):
    """A loss in fp64 with this state."""
    loss = build_loss(name, 3, **SMALL | dict(options)).double()
    for key, value in dict(state).items():
        loss.get_buffer(key).copy_(value)
    return loss


def value(loss, student=STUDENT, teacher=TEACHER):
    name = type(loss).__name__
    scale, bias = torch.tensor(10.0 if name == "SigLIP" else SCALE, dtype=torch.float64), torch.tensor(-10.0)
    labels = LABELS.clamp(max=2) if name == "CrossEntropy" else LABELS
    return loss(student, teacher, logit_scale=scale, logit_bias=bias, labels=labels)


@pytest.mark.parametrize("name, options, state, expected", GOLDEN)
def test_loss_is_that_of_the_published_code(name, options, state, expected):
    assert value(built(name, options, state)).item() == pytest.approx(expected, rel=1.2e-7, abs=1e-6)  # theirs was fp32


@pytest.mark.parametrize("name, options, state, expected", GOLDEN)
def test_single_precision_is_enough_also_under_autocast(name, options, state, expected):
    loss = built(name, options, state).float()
    with torch.autocast("cpu", torch.bfloat16):
        assert value(loss, STUDENT.float(), TEACHER.float()).item() == pytest.approx(expected, rel=2e-6, abs=1e-6)


def test_prototype_state_after_a_step_is_that_of_the_published_code():
    dino, cpc = (built(name, {}, state) for name, _, state, _ in GOLDEN[-3:-1])
    value(dino), value(cpc)
    assert dino.center.tolist() == pytest.approx([0.094941, 0.178493, 0.263431], abs=1e-6)
    assert cpc.prior.tolist() == pytest.approx([0.495665, 1.038354, 1.465981], abs=1e-6)


def test_cross_entropy_is_the_mean_of_both_sides_over_rows_with_a_label():
    image, text, labels = torch.randn(4, 9), torch.randn(4, 9), torch.tensor([8, 0, -1, 3])
    expected = (
        sum(torch.nn.functional.cross_entropy(side[labels >= 0], labels[labels >= 0]) for side in (image, text)) / 2
    )
    assert torch.allclose(build_loss("CrossEntropy", 9)(image, text, labels=labels), expected)
    assert build_loss("CrossEntropy", 9)(image, text, labels=torch.full((4,), -1)).item() == 0


@pytest.mark.parametrize("name", LOSSES)
def test_teacher_gets_a_gradient_unless_the_paper_stops_it(name):
    student, teacher = STUDENT.clone().requires_grad_(), TEACHER.clone().requires_grad_()
    value(built(name), student, teacher).backward()
    assert student.grad.abs().max() > 0
    stopped = name in ("CompRess-1q", "SEED", "DINO", "ProtoRKD", "ProtoCPC")
    assert (teacher.grad is None) == stopped == loss_class(name).uni_directional


@pytest.mark.parametrize("name", LOSSES)
def test_state_moves_in_training_only(name):
    loss = built(name)
    before = {key: tensor.clone() for key, tensor in loss.state_dict().items()}
    value(loss.eval())
    assert all(torch.equal(tensor, before[key]) for key, tensor in loss.state_dict().items())
    value(loss.train())
    assert not before or any(not torch.equal(tensor, before[key]) for key, tensor in loss.state_dict().items())


def test_names_are_found_in_any_case_and_protorkd_is_dino():
    assert loss_class("SIMREG-smoothl1") is loss_class("SimReg-SmoothL1")
    assert loss_class("protorkd") is loss_class("DINO")


@pytest.mark.parametrize(
    "given, sentence",
    [
        (("InfoNSE", 3), "--loss InfoNSE is not one of InfoNCE, UniCL"),
        (("SEED", 3, {"queue_size": 0}), "--queue_size is 0; a queue holds at least 1 feature"),
        (("VICReg", 3, {"variant": "late"}), "--loss_variant late is not one of paper, original"),
    ],
)
def test_what_cannot_be_built_is_one_sentence(given, sentence):
    name, dim, options = (*given, {})[:3]
    with pytest.raises(UserError, match=sentence):
        build_loss(name, dim, **options)


@pytest.mark.parametrize("name, missing", [("InfoNCE", "logit_scale"), ("SigLIP", "logit_bias"), ("UniCL", "labels")])
def test_what_a_loss_lacks_is_one_sentence(name, missing):
    given = {"logit_scale": torch.tensor(1.0), "logit_bias": torch.tensor(0.0), "labels": LABELS, missing: None}
    with pytest.raises(UserError, match=missing):
        build_loss(name, 3)(STUDENT, TEACHER, **given)


def test_barlow_is_one_short_of_each_diagonal_in_the_original_at_perfect_alignment():
    """The spec's measurement: B = 256, D = 128, the diagonal is 1 / 256 and its term 127 of 128."""
    features = torch.randn(256, 128, dtype=torch.float64)
    original = build_loss("BarlowTwins", 128, variant="original")
    original.WEIGHT = 0
    assert original(features, features).item() == pytest.approx(128 * (1 - 1 / 256) ** 2, abs=1e-6)
    paper = build_loss("BarlowTwins", 128)
    paper.WEIGHT = 0
    assert paper(features, features).item() == pytest.approx(0, abs=1e-9)
    assert math.isfinite(paper(torch.ones(4, 3), torch.ones(4, 3)).item())
