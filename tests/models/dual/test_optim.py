"""Which parameter of a dual encoder follows which learning rate, and ProtoCLIP's phases epoch by epoch."""

import pytest
import torch
from torch import nn

from clip_vl.losses.episode import Phases
from clip_vl.models.dual.encoder import DualEncoder
from clip_vl.models.dual.optim import OptimSpec, parameter_groups, phase_schedules


def test_the_image_tower_alone_follows_lr():
    """ProtoCLIP's code divides parameters by "visual" in their names; projections and heads are not the tower's."""
    extras = {name: nn.Linear(2, 2) for name in ("image_projection", "text_projection")}
    extras["prototype_scale"] = nn.Parameter(torch.zeros(()))
    model = DualEncoder(*(nn.Linear(2, 2) for _ in range(4)), **extras)
    groups = parameter_groups(model, OptimSpec(lr=1.0, text_lr=0.25, weight_decay=0.5))
    of_tower = {id(parameter) for parameter in model.image_tower.parameters()}
    assert {id(p) for group in groups["image"] for p in group["params"]} == of_tower
    assert {group["lr"] for group in groups["image"]} == {1.0}
    assert {group["lr"] for group in groups["text"]} == {0.25}
    others = [p for group in groups["text"] for p in group["params"]]
    assert len(others) + len(of_tower) == len(list(model.parameters()))


@pytest.mark.parametrize("lit, epochs", [(-1, 4), (0, 4), (1, 0), (3, 2), (4, 3), (9, 4)])
def test_prototypes_and_the_image_tower_stop_before_the_lit_epoch(lit, epochs):
    """Published: LiT when lit_start_epoch > 0 and epoch >= lit_start_epoch - 1, epochs from 0; 0 means never."""
    phases = Phases(lit_start=lit)
    assert [phases.has_prototypes(epoch) for epoch in range(4)] == [epoch < epochs for epoch in range(4)]
    image = phase_schedules(10, 4, 0, lit_start=lit)["image"]
    assert [image(10 * epoch) > 0 for epoch in range(4)] == [epoch < epochs for epoch in range(4)]


def test_a_warm_up_longer_than_the_run_or_a_phase_is_said_and_ends_with_it(capsys):
    schedules = phase_schedules(10, 2, 10000, lit_start=0, text_start=0)
    assert capsys.readouterr().out.count("--warmup 10000 is longer than the run's 20 updates") == 1
    assert all(schedule(19) == 1 for schedule in schedules.values())
    assert phase_schedules(10, 2, 15, lit_start=2, text_start=0)["image"](9) == 1
    assert capsys.readouterr().out.count("longer than the image tower's 10 updates") == 1


def test_a_clustering_in_the_warm_up_serves_the_epochs_after_it():
    """With a clustering every third epoch and one epoch of warm-up, epochs 1 and 2 use the prototypes of epoch 0."""
    phases = Phases(warmup=1, lit_start=7, clustering=3)
    assert [epoch for epoch in range(12) if phases.clusters_in(epoch)] == [0, 3]
    assert not any(Phases(warmup=1, lit_start=7, clustering=-1).clusters_in(epoch) for epoch in range(12))
