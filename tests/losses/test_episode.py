"""ProtoCLIP's episode: its rows, its clusters, and what else it was given."""

import numpy as np
import pytest
import torch

from clip_vl.engine.errors import UserError
from clip_vl.losses.base import unit
from clip_vl.losses.episode import EpisodeLoss
from clip_vl.losses.prototypes import prototypical_loss

ROWS = np.array([2, 3, 3, 5, 8, 9])
SCALE = torch.tensor(10.0)


def filled(**options):
    """An episode of six pairs in two clusters far apart, and the features that were clustered."""
    torch.manual_seed(0)
    sides = torch.tensor([0.0, 1, 1, 0, 1, 0])[:, None]
    image = torch.cat([sides, 1 - sides], 1) * 10 + 0.1 * torch.rand(6, 2)
    text = torch.cat([1 - sides, sides], 1) * 10 + 0.1 * torch.rand(6, 2)
    episode = EpisodeLoss(6, 2, 2, **options)
    assert not episode.is_filled
    episode.fill(ROWS, image, text, seed=0)
    return episode, image, text


def test_each_side_learns_the_cluster_of_the_other_ones_feature():
    episode, image, text = filled(pbt=True)
    rows = torch.tensor([8, 2, 5])  # the features at places 4, 0 and 3
    found = episode(image[[4, 0, 3]], text[[4, 0, 3]], rows, SCALE)
    expected = 0
    for name, student in (("i2t", image), ("t2i", text)):
        labels = getattr(episode, f"{name}_labels")
        means = torch.stack([unit(student)[labels == k].mean(0) for k in range(2)])
        expected += prototypical_loss(student[[4, 0, 3]], labels[[4, 0, 3]], means, scale=SCALE) / 2
    assert found.keys() == {"proto"} and found["proto"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("pbt", [False, True])
def test_the_length_of_projections_changes_no_prototype(pbt):
    """The published model normalises both projections before they are clustered: a prototype is at most of length 1.
    Means of longer features would act as a temperature that grows with training."""
    torch.manual_seed(0)
    image, text = torch.randn(2, 40, 6)
    rows, lengths = np.arange(40), 50 * torch.rand(40, 1) + 1
    one, other = EpisodeLoss(40, 5, 6, pbt=pbt), EpisodeLoss(40, 5, 6, pbt=pbt)
    one.fill(rows, image, text, seed=0)
    other.fill(rows, image * lengths, text * lengths, seed=0)
    for name, found in one.state_dict().items():
        assert torch.allclose(found.float(), other.state_dict()[name].float(), atol=1e-5)
        assert name.endswith(("rows", "labels")) or found.norm(dim=1).max() <= 1 + 1e-6
    expected = sum(published_term(*each) for each in ((one, "i2t", image), (one, "t2i", text))) / 2
    assert one(image, text, torch.from_numpy(rows), SCALE)["proto"].item() == pytest.approx(expected.item(), rel=1e-5)


def published_term(episode, name, student):
    """ProtoCLIP's code in numbers: unit features with prototypes as they are, hard labels (arXiv:2206.10996)."""
    labels, prototypes = getattr(episode, f"{name}_labels"), getattr(episode, f"{name}_student")
    scores = (SCALE * (student / student.norm(dim=1, keepdim=True)) @ prototypes.T).softmax(1)
    return -scores[torch.arange(len(labels)), labels].log().mean()


def test_rows_outside_the_episode_count_with_a_loss_of_zero():
    """They are in later epochs that share its clustering; as places they would be other rows' labels."""
    episode, image, text = filled()
    inside = episode(image[:1], text[:1], torch.tensor([2]), SCALE)["proto"]
    for stranger in (0, 4, 99):
        both = episode(image[[0, 1]], text[[0, 1]], torch.tensor([2, stranger]), SCALE)["proto"]
        assert both.item() == pytest.approx(inside.item() / 2)
    assert episode(image[:2], text[:2], torch.tensor([0, 99]), SCALE)["proto"].item() == 0


def test_an_external_teacher_adds_a_loss_of_its_own():
    external = np.zeros((10, 3), np.float32)
    external[[3, 8]] = 5
    episode, image, text = filled(external=external, pbt=True)
    assert episode(image, text, torch.from_numpy(ROWS), SCALE).keys() == {"proto", "proto_external"}
    assert torch.equal(
        episode.i2e_labels == episode.i2e_labels[0], torch.tensor([True, False, False, True, False, True])
    )


def test_more_clusters_than_pairs_are_refused_before_training():
    with pytest.raises(UserError, match="--k 7 clusters of an episode of 6 pairs"):
        EpisodeLoss(6, 7, 2)


def test_a_saved_episode_goes_on_as_it_was():
    episode, image, text = filled()
    other = EpisodeLoss(6, 2, 2)
    other.load_state_dict(episode.state_dict())
    values = [each(image, text, torch.from_numpy(ROWS), SCALE)["proto"] for each in (episode, other)]
    assert other.is_filled and torch.equal(*values)
