"""The targets of layer-wise distillation: instance norm, mean over layers, and what padding does."""

import torch

from clip_vl.losses.distill.layers import layer_average, layer_distillation


def test_the_average_is_of_states_normalised_over_tokens():
    states = [torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(k)) for k in range(3)]
    expected = sum((s - s.mean(1, True)) / (s.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() for s in states) / 3
    torch.testing.assert_close(layer_average(states, final_norm=False), expected, rtol=1e-5, atol=1e-6)
    normed = (expected - expected.mean(-1, True)) / (expected.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(layer_average(states), normed, rtol=1e-5, atol=1e-6)


def test_only_counted_tokens_reach_the_loss_and_the_teacher_gets_no_gradient():
    teacher, student = torch.randn(1, 4, 8), torch.randn(1, 4, 8)
    mask = torch.tensor([[1, 1, 0, 0]])
    difference = layer_average([student], False) - layer_average([teacher], False)
    found = layer_distillation([student.requires_grad_()], [teacher.requires_grad_()], mask, final_norm=False)
    torch.testing.assert_close(found, difference[:, :2].square().mean())
    found.backward()
    assert teacher.grad is None and student.grad is not None
