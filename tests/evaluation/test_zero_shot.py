"""Class weights from prompts, both ways, solved by hand."""

import torch

from clip_vl.evaluation.zero_shot import class_probabilities, class_weights


def test_prompts_count_alike_or_by_their_length():
    """Prompts (3, 0) and (0, 1): normalised first the mean points to 45 degrees, else along (3, 1)."""
    prompts = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]])
    assert torch.allclose(class_weights(prompts)[0], torch.tensor([0.5, 0.5]).sqrt())
    assert torch.allclose(class_weights(prompts, normalise_first=False)[0], torch.tensor([3.0, 1.0]) / 10**0.5)


def test_probabilities_are_of_cosines_times_a_hundred():
    image, weights = torch.tensor([[0.6, 0.8]]), torch.eye(2)
    assert torch.allclose(class_probabilities(image, weights), torch.softmax(torch.tensor([[60.0, 80.0]]), 1))
