"""The pre-training losses against closed forms."""

import math

import pytest
import torch
from torch.nn import functional as F
from transformers import LxmertConfig, LxmertForPreTraining

from clip_vl.losses.pretraining import answer_loss, masked_lm_loss, matched_loss, region_losses

LOSSES = [masked_lm_loss, matched_loss, answer_loss]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("classes", [2, 30522])
def test_uniform_logits_cost_the_log_of_the_number_of_classes(loss, classes):
    targets = torch.tensor([0, 1, -1])
    assert loss(torch.zeros(3, classes), targets).item() == pytest.approx(math.log(classes), rel=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("targets", [[], [-1, -1]])
def test_no_target_costs_nothing_and_gives_zero_gradients(loss, targets):
    logits = torch.randn(len(targets), 5, requires_grad=True)
    value = loss(logits, torch.tensor(targets, dtype=torch.int64))
    value.backward()
    assert value.item() == 0
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("loss", LOSSES)
def test_ignored_rows_do_not_count(loss):
    logits, targets = torch.randn(4, 5), torch.tensor([1, -1, 4, -1])
    assert torch.allclose(loss(logits, targets), F.cross_entropy(logits[[0, 2]], targets[[0, 2]]))


def test_two_processes_with_the_shared_count_average_to_the_whole_batch():
    logits, targets = torch.randn(6, 5), torch.tensor([1, -1, 4, -1, -1, -1])
    count = (targets >= 0).sum() / 2
    shares = [answer_loss(logits[rows], targets[rows], count) for rows in ([0, 1, 2], [3, 4, 5])]
    assert torch.allclose(sum(shares) / 2, answer_loss(logits, targets))


def test_half_precision_logits_are_summed_in_single_precision():
    assert masked_lm_loss(torch.zeros(1, 30522, dtype=torch.bfloat16), torch.tensor([7])).dtype == torch.float32


def lxmert_region_loss(labels, seed):
    """(transformers' LXMERT loss with only that label set, what its heads predict)."""
    config = LxmertConfig(
        vocab_size=9, hidden_size=8, num_attention_heads=2, intermediate_size=8, l_layers=1, x_layers=1, r_layers=1,
        visual_feat_dim=6, num_object_labels=7, num_attr_labels=5, num_qa_labels=2, task_matched=False,
        task_mask_lm=False, task_qa=False, visual_loss_normalizer=1 / 0.15, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(seed)
    model = LxmertForPreTraining(config).eval()
    generator = torch.Generator().manual_seed(seed)
    ids, features, boxes = (
        torch.ones(2, 3, dtype=torch.long),
        torch.randn(2, 4, 6, generator=generator),
        torch.rand(2, 4, 4),
    )
    inputs = ids, features, boxes
    _, states, _ = model.lxmert(*inputs)[:3]
    loss = model(*inputs, obj_labels=labels, return_dict=False)[0]
    return loss, model.obj_predict_head(states)


def test_region_losses_are_lxmerts():
    generator = torch.Generator().manual_seed(1)
    labels = {"obj": torch.randint(0, 7, (2, 4)), "attr": torch.randint(0, 5, (2, 4))}
    confidences = {name: torch.rand(2, 4) for name in labels}
    features = torch.randn(2, 4, 6, generator=generator)
    masked = torch.tensor([[True, False, True, False], [False, False, False, True]])
    asked = {name: (labels[name], confidences[name]) for name in labels} | {"feat": (features, masked.float())}
    with torch.no_grad():
        total, predictions = lxmert_region_loss(asked, seed=3)
        everywhere = torch.ones(2, 4, dtype=torch.bool)
        ours = region_losses(predictions, features, labels, confidences, masked, everywhere)
    assert set(ours) == {"loss_obj", "loss_attr", "loss_feat"}
    assert torch.allclose(sum(ours.values()), total, atol=1e-5)


def test_region_losses_worked_by_hand():
    """Uniform logits cost the log of the classes, times the confidence; a miss by 3 costs 3 - 1/2, where masked."""
    seen, masked = torch.tensor([[True, True]]), torch.tensor([[False, True]])
    predictions = {"obj": torch.zeros(1, 2, 8), "attr": torch.zeros(1, 2, 4), "feat": torch.zeros(1, 2, 2)}
    labels = {"obj": torch.tensor([[7, 0]]), "attr": torch.tensor([[3, 1]])}
    confidences = {"obj": torch.tensor([[0.5, 0.25]]), "attr": torch.tensor([[1.0, 0.0]])}
    found = region_losses(predictions, torch.full((1, 2, 2), 3.0), labels, confidences, masked, seen)
    assert found["loss_obj"].item() == pytest.approx(0.75 / 2 * math.log(8) / 0.15)
    assert found["loss_attr"].item() == pytest.approx(1 / 2 * math.log(4) / 0.15)
    assert found["loss_feat"].item() == pytest.approx(1 / 2 * 2.5 / 0.15)
    half = region_losses(predictions, torch.zeros(1, 2, 2), labels, confidences, masked, seen, torch.tensor(4.0))
    assert half["loss_obj"].item() == pytest.approx(found["loss_obj"].item() / 2)


def test_padded_regions_do_not_count():
    labels, confidences = {"obj": torch.tensor([[1, 0, 0]])}, {"obj": torch.tensor([[0.5, 1.0, 1.0]])}
    logits, features = torch.randn(1, 3, 4), torch.zeros(1, 3, 2)
    nothing = torch.zeros(1, 3, dtype=torch.bool)
    visible = torch.tensor([[True, False, False]])
    loss = region_losses({"obj": logits}, features, labels, confidences, nothing, visible)["loss_obj"]
    assert torch.allclose(loss, 0.5 * F.cross_entropy(logits[0, :1], torch.tensor([1])) / 0.15)
    assert region_losses({"obj": logits}, features, labels, confidences, nothing, nothing)["loss_obj"].item() == 0
