"""Schedules against transformers and by hand, parameter groups, clipping, accumulation, and skipped updates."""

import math

import pytest
import torch
from torch import nn

from clip_vl.engine.errors import Diverged
from clip_vl.engine.meters import StepLog
from clip_vl.engine.optim import (
    Updater,
    autocast_dtype,
    param_groups,
    say_long_warmup,
    step_decay,
    warmup_cosine,
    warmup_linear,
)

CPU = torch.device("cpu")


def updater_of(model, lr=0.1, factor=lambda update: 1.0, **kwargs):
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    return Updater(model, {"sgd": (optimizer, factor)}, device=CPU, **{"max_grad_norm": 1e9, **kwargs})


def test_warmup_linear_is_the_schedule_of_transformers():
    from transformers import get_linear_schedule_with_warmup

    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    theirs = get_linear_schedule_with_warmup(optimizer, 5, 40)
    ours = warmup_linear(40, 0.125)
    for update in range(41):
        assert ours(update) == pytest.approx(theirs.get_last_lr()[0]), update
        optimizer.step()
        theirs.step()


def test_a_warm_up_ends_with_the_run(capsys):
    """Twenty updates under --warmup 10000 reach --lr; a shorter warm-up is followed by a cosine, as ever."""
    factor = warmup_cosine(20, 10000)
    assert [factor(update) for update in (0, 9, 19, 20)] == [1 / 20, 1 / 2, 1, 0]
    held = warmup_cosine(30, 10000, held_until=10)
    assert [held(update) for update in (9, 10, 29, 30)] == [0, 1 / 20, 1, 0]
    assert [round(warmup_cosine(20, 10)(update), 6) for update in (0, 9, 10, 15, 20)] == [0.1, 1, 1, 0.5, 0]
    assert warmup_cosine(0, 10000)(0) == 0
    say_long_warmup(20, 20)
    assert not capsys.readouterr().out
    say_long_warmup(10000, 20)
    assert "--warmup 10000 is longer than the run's 20 updates" in capsys.readouterr().out


def test_step_decay_drops_at_the_start_of_each_milestone_epoch():
    factor = step_decay([2, 5], updates_per_epoch=10)
    expected = {0: 1, 19: 1, 20: 0.1, 49: 0.1, 50: 0.01, 99: 0.01}
    assert {update: pytest.approx(factor(update)) for update in expected} == expected
    assert step_decay([2], 10, first_epoch=1)(10) == pytest.approx(0.1)


def test_biases_and_layer_norms_of_bert_are_not_decayed_but_others_are():
    names = ["a.weight", "a.bias", "x.LayerNorm.weight", "visn_layer_norm.weight", "logit_fc.2.weight"]
    named = [(name, nn.Parameter(torch.zeros(1))) for name in names]
    decayed, kept = param_groups(named, 0.01)
    assert [p is q for p, q in zip(decayed["params"], [named[0][1], named[3][1], named[4][1]])] == [True] * 3
    assert (decayed["weight_decay"], kept["weight_decay"], len(kept["params"])) == (0.01, 0.0, 2)


def test_accumulated_micro_batches_are_the_mean_gradient():
    torch.manual_seed(0)
    x = torch.randn(6, 3)
    whole, parts = nn.Linear(3, 1), nn.Linear(3, 1)
    parts.load_state_dict(whole.state_dict())
    one, three = updater_of(whole), updater_of(parts)
    one(whole(x).pow(2).mean())
    for number, rows in enumerate(x.split(2)):
        three.begin(is_last=number == 2, accumulate=3)
        assert three(parts(rows).pow(2).mean()) == (number == 2)
    assert torch.allclose(whole.weight, parts.weight, atol=1e-6)


def test_clipping_is_joint_over_all_optimizers():
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    model = nn.ParameterList([a, b])
    optimizers = {name: (torch.optim.SGD([p], lr=1.0), lambda update: 1.0) for name, p in (("a", a), ("b", b))}
    updater = Updater(model, optimizers, device=CPU, max_grad_norm=1.0)
    updater.backward((3 * a + 4 * b).sum())
    norm, _ = updater.step()
    assert norm == pytest.approx(5.0)
    assert (a.item(), b.item()) == (pytest.approx(-0.6, abs=1e-5), pytest.approx(-0.8, abs=1e-5))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_non_finite_update_changes_nothing_not_even_batch_norm(poison):
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    updater = updater_of(model)
    before = {name: value.clone() for name, value in model.state_dict().items() if value.is_floating_point()}
    updater.backward(model(torch.tensor([[poison, 1.0], [1.0, 2.0]])).sum())
    norm, _ = updater.step()
    assert norm is None and (updater.update, updater.skipped) == (0, 1)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_too_many_skipped_updates_end_the_run():
    model = nn.Linear(1, 1)
    updater = updater_of(model, max_skipped=2)
    for expected in (False, True):
        updater.backward(model(torch.tensor([[math.nan]])).sum())
        if expected:
            with pytest.raises(Diverged, match="2 updates"):
                updater.step()
        else:
            updater.step()


def test_the_learning_rate_follows_the_update_and_not_the_skipped_ones():
    model = nn.Linear(1, 1, bias=False)
    updater = updater_of(model, lr=1.0, factor=lambda update: [1.0, 0.5][update])
    updater.backward(model(torch.tensor([[math.nan]])).sum())
    updater.step()
    for rate in (1.0, 0.5):
        before = model.weight.item()
        updater.backward(model(torch.ones(1, 1)).sum())
        updater.step()
        assert before - model.weight.item() == pytest.approx(rate)


def test_precision_flags():
    assert autocast_dtype(CPU, bf16=True) == torch.bfloat16
    assert autocast_dtype(CPU, bf16=False) is None
    assert autocast_dtype(CPU, fp16=True) == torch.bfloat16  # a CPU has no fast float16
    assert autocast_dtype(torch.device("cuda"), fp16=True) == torch.float16


class Stop:
    """A signal that asked this rank to stop."""

    def __bool__(self):
        return True


def test_a_call_logs_before_its_step_names_the_samples_of_a_skipped_one_and_hears_of_a_stop(capsys):
    model, rows = nn.Linear(1, 1, bias=False), []
    log = StepLog(lambda **row: rows.append(row), CPU, every=2, samples=3)
    updater = updater_of(model, log=log, stop=Stop(), name_of="sample {}".format)
    for number, factor in enumerate((1.0, 2.0, math.nan, 3.0)):
        updater.begin(rows=torch.tensor([number, 9]), epoch=4, is_last=number > 0)
        with updater.forward():
            loss = model(torch.ones(1, 1)).sum() * 0 + factor
        assert updater.stopped == (number > 1)
        assert updater(loss, {"loss_a": loss, "loss_b": 1.0}, {"loss_a": torch.tensor(float(number))}) == (number > 0)
    assert [(row["step"], row["epoch"], row["skipped"], row["samples"]) for row in rows] == [(0, 5, 0, 6), (1, 5, 1, 6)]
    assert rows[0]["loss_a"] == 2.0 and rows[0]["loss"] == 3.0  # of the first a weight of 0; without `loss` their sum
    said = "warning: update 1 skipped: loss or gradient not finite; samples ['sample 2', 'sample 9']...\n"
    assert capsys.readouterr().out == said
