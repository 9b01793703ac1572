"""Which parameter of a dual encoder follows which learning rate, and ProtoCLIP's phases epoch by epoch."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from clip_vl.align import clusters_in, has_prototypes
from clip_vl.models.dual.encoder import DualEncoder
from clip_vl.models.dual.optim import parameter_groups, protoclip_schedules


def test_the_image_tower_alone_follows_lr():
    """ProtoCLIP's code divides parameters by "visual" in their names; projections and heads are not the tower's."""
    extras = {name: nn.Linear(2, 2) for name in ("image_projection", "text_projection")}
    extras["prototype_scale"] = nn.Parameter(torch.zeros(()))
    model = DualEncoder(*(nn.Linear(2, 2) for _ in range(4)), **extras)
    args = SimpleNamespace(lr=1.0, lr_text=0.25, weight_decay=0.5, layer_decay_image=1, layer_decay_text=1)
    groups = parameter_groups(model, args)
    of_tower = {id(parameter) for parameter in model.image_tower.parameters()}
    assert {id(p) for group in groups["image"] for p in group["params"]} == of_tower
    assert {group["lr"] for group in groups["image"]} == {1.0}
    assert {group["lr"] for group in groups["text"]} == {0.25}
    others = [p for group in groups["text"] for p in group["params"]]
    assert len(others) + len(of_tower) == len(list(model.parameters()))


@pytest.mark.parametrize("lit, epochs", [(-1, 4), (0, 4), (1, 0), (3, 2), (4, 3), (9, 4)])
def test_prototypes_and_the_image_tower_stop_before_the_lit_epoch(lit, epochs):
    """Published: LiT when lit_start_epoch > 0 and epoch >= lit_start_epoch - 1, epochs from 0; 0 means never."""
    args = SimpleNamespace(
        epochs=4, warmup=0, lit_start_epoch=lit, infonce_warmup_epoch=0, text_start_epoch=-1, text_end_epoch=-1
    )
    assert [has_prototypes(epoch, args) for epoch in range(4)] == [epoch < epochs for epoch in range(4)]
    image = protoclip_schedules(args, 10)["image"]
    assert [image(10 * epoch) > 0 for epoch in range(4)] == [epoch < epochs for epoch in range(4)]


def test_a_warm_up_longer_than_the_run_or_a_phase_is_said_and_ends_with_it(capsys):
    args = SimpleNamespace(lit_start_epoch=0, text_start_epoch=0, text_end_epoch=-1, epochs=2, warmup=10000)
    schedules = protoclip_schedules(args, 10)
    assert capsys.readouterr().out.count("--warmup 10000 is longer than the run's 20 updates") == 1
    assert all(schedule(19) == 1 for schedule in schedules.values())
    args.lit_start_epoch, args.warmup = 2, 15
    assert protoclip_schedules(args, 10)["image"](9) == 1
    assert capsys.readouterr().out.count("longer than the image tower's 10 updates") == 1


def test_a_clustering_in_the_warm_up_serves_the_epochs_after_it():
    """With a clustering every third epoch and one epoch of warm-up, epochs 1 and 2 use the prototypes of epoch 0."""
    args = SimpleNamespace(clustering_frequency=3, infonce_warmup_epoch=1, lit_start_epoch=7)
    assert [epoch for epoch in range(12) if clusters_in(epoch, args)] == [0, 3]
    args.clustering_frequency = -1
    assert not any(clusters_in(epoch, args) for epoch in range(12))
