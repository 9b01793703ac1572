"""What is locked neither learns nor moves, whatever the rest does."""

import copy

import pytest
import torch
from torch import nn

from clip_vl.engine.errors import UserError
from clip_vl.models.dual.locks import lock, lock_partial


def tower():
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 2))


def test_a_locked_tower_stays_in_evaluation_and_outside_the_graph():
    locked = lock(tower())
    model = nn.ModuleDict({"tower": locked, "head": nn.Linear(2, 2)}).train()
    assert model["head"].training and not any(part.training for part in locked.modules())
    features = torch.randn(8, 4)
    assert torch.equal(locked(features), locked(features))  # no dropout
    assert locked[1].num_batches_tracked == 0
    assert not locked(features.requires_grad_()).requires_grad
    model["head"](locked(features)).sum().backward()
    assert model["head"].weight.grad is not None and all(p.grad is None for p in locked.parameters())
    assert not any(p.requires_grad for p in locked.parameters())


def test_locking_changes_neither_values_nor_names():
    plain = tower().eval()
    locked = lock(copy.deepcopy(plain))
    features = torch.randn(8, 4)
    assert torch.equal(locked(features), plain(features))
    assert list(locked.state_dict()) == list(plain.state_dict())
    assert isinstance(locked, nn.Sequential) and lock(locked) is locked
    assert not copy.deepcopy(locked).train().training


def frozen(module):
    return [name for name, parameter in module.named_parameters() if not parameter.requires_grad]


def test_words_freeze_and_free_from_left_to_right():
    module = tower()
    assert lock_partial(module, "0.,1., !bias") == frozen(module) == ["0.weight", "1.weight"]
    assert lock_partial(module, "weight") == ["0.weight", "1.weight", "3.weight"]
    assert lock_partial(module, "!weight") == []
    assert lock_partial(module, "!bias,bias") == ["0.bias", "1.bias", "3.bias"]


@pytest.mark.parametrize("words", ["layer9", "!layer9", "weight,layer9"])
def test_a_word_that_matches_nothing_is_answered_with_names(words):
    with pytest.raises(
        UserError, match=r"no parameter's name contains 'layer9'; some of the 6 names: 0.weight, 0.bias"
    ):
        lock_partial(tower(), words)
