"""NegCLIP's loss against the written-out formula."""

import torch
from torch.nn import functional as F

from clip_vl.losses.hard_negatives import hard_negative_loss

B, D = 3, 8


def features(seed=0):
    images, texts = torch.randn(6 * B, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).split(
        [2 * B, 4 * B]
    )
    return images.requires_grad_(), texts.requires_grad_()


def test_loss_is_the_formula_of_the_paper():
    """L = z Img Txt^T (2B x 4B), y = 0 ... 2B - 1; loss = 1/2 [CE(L, y) + CE(z Txt[:2B] Img^T, y)]."""
    images, texts = features()
    z, y = torch.tensor(7.0, dtype=torch.float64), torch.arange(2 * B)
    unit_images, unit_texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    logits = z * unit_images @ unit_texts.T
    assert logits.shape == (2 * B, 4 * B)
    expected = (F.cross_entropy(logits, y) + F.cross_entropy(z * unit_texts[: 2 * B] @ unit_images.T, y)) / 2
    assert torch.allclose(hard_negative_loss(images, texts, z), expected)


def test_negative_texts_are_told_from_the_image_and_ask_nothing():
    """Their only gradient comes through the image's logits; with z = 0 the loss is the mean of two logarithms."""
    images, texts = features()
    zero = torch.tensor(0.0, dtype=torch.float64)
    expected = (torch.tensor(4.0 * B).log() + torch.tensor(2.0 * B).log()) / 2
    assert torch.allclose(hard_negative_loss(images, texts, zero).float(), expected)
    hard_negative_loss(images.detach(), texts, torch.tensor(5.0, dtype=torch.float64)).backward()
    assert texts.grad[2 * B :].abs().min(dim=1).values.max() > 0


def test_an_image_that_stands_twice_in_the_batch_is_no_negative_of_itself():
    """Rows 0 and 4 are one image: neither sees the other's text, nor do the texts see the other's row."""
    images, texts = features()
    z, ids = torch.tensor(7.0, dtype=torch.float64), torch.tensor([5, 1, 2, 3, 5, 4])
    unit_images, unit_texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    losses = []
    for i in range(2 * B):
        other = {0: 4, 4: 0}.get(i, -1)
        seen = [j for j in range(4 * B) if j != other]
        pairs = [j for j in range(2 * B) if j != other]
        to_texts, to_images = z * unit_texts[seen] @ unit_images[i], z * unit_images[pairs] @ unit_texts[i]
        losses.append(-to_texts.log_softmax(0)[seen.index(i)] - to_images.log_softmax(0)[pairs.index(i)])
    assert torch.allclose(hard_negative_loss(images, texts, z, ids), torch.stack(losses).mean() / 2)


def test_autocast_changes_nothing():
    images, texts = (side.detach().float() for side in features())
    with torch.autocast("cpu", torch.bfloat16):
        found = hard_negative_loss(images, texts, torch.tensor(50.0))
    assert torch.equal(found, hard_negative_loss(images, texts, torch.tensor(50.0)))
