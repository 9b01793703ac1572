"""Running means."""

import math

import torch

from clip_vl.engine.meters import Meters


def test_means_are_weighted_and_a_weight_of_zero_adds_nothing():
    meters = Meters(torch.device("cpu"))
    meters.add("loss", torch.tensor(2.0), 1)
    meters.add("loss", torch.tensor(5.0), torch.tensor(2))
    meters.add("loss", torch.tensor(math.nan), 0)
    assert meters.means() == {"loss": 4.0}


def test_what_nothing_was_added_to_has_no_mean():
    meters = Meters(torch.device("cpu"))
    meters.add("loss", 0.0, 0.0)
    meters.add("other", 3.0)
    assert meters.means() == {"other": 3.0}


def test_state_survives_json_exactly():
    import json

    meters, other = Meters(torch.device("cpu")), Meters(torch.device("cpu"))
    meters.add("loss", torch.tensor(1 / 3), 0.7)
    other.load_state(json.loads(json.dumps(meters.state())))
    assert other.state() == meters.state()
