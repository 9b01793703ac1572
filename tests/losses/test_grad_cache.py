"""GradCache: the gradients of the plain full batch, with dropout, on one process and on two."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from clip_vl.engine import dist
from clip_vl.losses.grad_cache import cached_backward, cached_forward

N, CHUNK = 16, 4


class TwoTowers(nn.Module):
    def __init__(self, norm=False):
        super().__init__()
        self.image = nn.Sequential(
            nn.Linear(5, 8), nn.BatchNorm1d(8) if norm else nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 4)
        )
        self.text = nn.Sequential(nn.Linear(3, 8), nn.GELU(), nn.Dropout(0.3), nn.Linear(8, 4))
        self.logit_scale = nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        outputs = {"image_features": self.image(batch["images"]), "text_features": self.text(batch["texts"])}
        return outputs | {"logit_scale": self.logit_scale.exp(), "seen": batch["rows"]}


def made(norm=False):
    torch.manual_seed(0)
    return TwoTowers(norm).double()


def chunks_of_mine():
    generator = torch.Generator().manual_seed(1)
    batch = {"images": torch.randn(N, 5, dtype=torch.float64, generator=generator), "rows": torch.arange(N),
             "texts": torch.randn(N, 3, dtype=torch.float64, generator=generator)}  # fmt: skip
    mine = {key: tensor.chunk(dist.world_size())[dist.rank()] for key, tensor in batch.items()}
    parts = {key: tensor.split(CHUNK) for key, tensor in mine.items()}
    return [{key: part[i] for key, part in parts.items()} for i in range(len(parts["rows"]))]


def seed_chunk(i):
    torch.manual_seed(100 + dist.rank() * N // CHUNK // dist.world_size() + i)  # of the chunk, whoever has it


def contrast(outputs):
    """InfoNCE over the whole batch; the plain form, every process all of it."""
    images, texts = (dist.all_gather(outputs[f"{side}_features"]) for side in ("image", "text"))
    logits = outputs["logit_scale"] * images @ texts.T
    return nn.functional.cross_entropy(logits, torch.arange(len(logits)))


def plain_gradients(model):
    """Activations of all chunks at once."""
    outputs = []
    for i, chunk in enumerate(chunks_of_mine()):
        seed_chunk(i)
        outputs.append(model(chunk))
    whole = {name: torch.cat([each[name] for each in outputs]) for name in ("image_features", "text_features")}
    contrast(whole | {"logit_scale": outputs[0]["logit_scale"]}).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def cached_gradients(model, factor=1):
    chunks = chunks_of_mine()
    leaves = cached_forward(model, chunks, seed_chunk)
    (factor * contrast(leaves)).backward()
    cached_backward(model, chunks, leaves, seed_chunk)
    module = getattr(model, "module", model)
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def same(found, expected):
    return found.keys() == expected.keys() and all(
        torch.allclose(found[name], expected[name], rtol=1e-9, atol=1e-12) for name in expected
    )


def case(folder):
    return cached_gradients(DistributedDataParallel(made()) if dist.world_size() > 1 else made())


def test_gradients_are_those_of_the_plain_full_batch_with_dropout():
    expected = plain_gradients(made())
    assert all(gradient.abs().max() > 0 for gradient in expected.values())
    assert same(cached_gradients(made()), expected)


def test_a_scaled_loss_gives_scaled_gradients():
    """As a GradScaler scales it: nothing is scaled twice."""
    expected = {name: 1024 * gradient for name, gradient in plain_gradients(made()).items()}
    assert same(cached_gradients(made(), factor=1024), expected)


def test_processes_exchange_once_and_have_the_gradients_of_the_whole_batch(programs, tmp_path):
    expected = plain_gradients(made())
    assert all(same(found, expected) for found in programs.cases(__file__, tmp_path, 2)[2])


def test_batch_norm_statistics_move_once_and_its_gradients_are_the_chunks():
    model, plain = made(norm=True), made(norm=True)
    assert same(cached_gradients(model), plain_gradients(plain))
    assert model.image[1].num_batches_tracked == N // CHUNK
    for name, buffer in plain.named_buffers():
        assert torch.equal(buffer, model.get_buffer(name)), name


def test_the_first_pass_keeps_no_activations_and_moves_no_buffer():
    model = made(norm=True)
    before = [buffer.clone() for buffer in model.buffers()]
    leaves = cached_forward(model, chunks_of_mine(), seed_chunk)
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers()))
    assert all(leaf.grad_fn is None for leaf in leaves.values())
    assert leaves["image_features"].shape == (N, 4) and leaves["logit_scale"].shape == ()
    assert leaves["logit_scale"].requires_grad and leaves["seen"].tolist() == list(range(N))


def test_an_output_that_the_loss_leaves_out_is_no_trouble():
    model, chunks = made(), chunks_of_mine()
    leaves = cached_forward(model, chunks, seed_chunk)
    leaves["image_features"].sum().backward()
    cached_backward(model, chunks, leaves, seed_chunk)
    assert model.text[0].weight.grad is None and model.image[0].weight.grad.abs().max() > 0


@pytest.mark.parametrize("sizes", [[3, 5], [1, 7]])
def test_chunks_may_differ_in_size(sizes):
    model, reference = made().eval(), made().eval()
    batch = {"images": torch.randn(8, 5).double(), "texts": torch.randn(8, 3).double(), "rows": torch.arange(8)}
    parts = {key: tensor.split(sizes) for key, tensor in batch.items()}
    chunks = [{key: part[i] for key, part in parts.items()} for i in range(2)]
    leaves = cached_forward(model, chunks, lambda i: None)
    contrast(leaves).backward()
    cached_backward(model, chunks, leaves, lambda i: None)
    contrast(reference(batch)).backward()
    pairs = zip(model.parameters(), reference.parameters())
    assert all(torch.allclose(a.grad, b.grad, rtol=1e-9, atol=1e-14) for a, b in pairs)
