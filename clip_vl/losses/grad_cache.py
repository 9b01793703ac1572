"""GradCache (arXiv:2101.06983): the gradient of a loss over a large batch, on the memory of one chunk's activations.

    passes = GradCache(model, 64, seed)
    outputs = passes.forward(batch, step)      # every chunk, without activations
    loss_of(outputs).backward()                # gradients of the outputs
    passes.backward()                          # every chunk again, with activations: gradients of the weights

A model's outputs are a dict of tensors: (b, ...) with a row per sample of the chunk, or scalars such as a temperature,
which are the same for every chunk. The random generators are keyed by step and chunk: dropout is the same both times.

Autocast is the caller's, around each of the calls. With a GradScaler the loss is scaled before its backward pass, so
the gradients of the leaves are scaled already and nothing is scaled here.
"""

import contextlib

import torch

from clip_vl.engine import dist
from clip_vl.engine.random import derive_seed


class GradCache:
    """Forward and backward passes of a model in chunks of `size` rows; size 0 is one pass over the whole batch."""

    def __init__(self, model, size, seed):
        self.model, self.size, self.seed = model, size, seed
        self.chunks = self.outputs = self.step = None

    def forward(self, batch, step):
        """The model's outputs for a whole batch. step: a number that keys the random draws"""
        self.chunks, self.step = in_chunks(batch, self.size), step
        chunked = self.chunks and cached_forward(self.model, self.chunks, self._seed_chunk)
        self.outputs = chunked or self.model(batch)
        return self.outputs

    def backward(self):
        """After the losses' backward pass: carry the gradients of the outputs on to the weights."""
        if self.chunks:
            cached_backward(self.model, self.chunks, self.outputs, self._seed_chunk)

    def _seed_chunk(self, chunk):
        torch.manual_seed(derive_seed(self.seed, "chunk", self.step, dist.rank(), chunk))


def in_chunks(batch, size):
    """A batch, a dict of tensors and of such dicts, in parts of `size` rows; none where it has no more than that.

    size: 0 for no parts
    """
    rows = _rows(batch)
    starts = range(0, rows, size) if 0 < size < rows else ()
    return [_part(batch, slice(start, start + size)) for start in starts]


def _rows(batch):
    first = next(iter(batch.values()))
    return _rows(first) if isinstance(first, dict) else len(first)


def _part(value, rows):
    return {name: _part(each, rows) for name, each in value.items()} if isinstance(value, dict) else value[rows]


def cached_forward(model, chunks, seed_chunk):
    """Outputs for all chunks as leaves that want gradients: {name: (B, ...) or scalar}.

    Buffers such as BatchNorm's statistics stay as they were: the second pass moves them, once.
    """
    module = dist.bare(model)  # no exchange of gradients here
    outputs = []
    with torch.no_grad(), kept_buffers(module):
        for i, chunk in enumerate(chunks):
            seed_chunk(i)
            outputs.append(module(chunk))
    return {name: _leaf([each[name] for each in outputs]) for name in outputs[0]}


def cached_backward(model, chunks, leaves, seed_chunk):
    """Carry the gradients of `cached_forward`'s leaves on to the weights, chunk by chunk.

    Under DistributedDataParallel only the last chunk exchanges gradients; scalars receive theirs with it.
    """
    start = 0
    for i, chunk in enumerate(chunks):
        is_last = i == len(chunks) - 1
        with _no_exchange(model, unless=is_last):
            seed_chunk(i)
            outputs = model(chunk)
            rows = next(len(output) for output in outputs.values() if output.ndim)
            total = surrogate(outputs, leaves, slice(start, start + rows), is_last)
            with torch.autocast(total.device.type, enabled=False):  # gradients keep their dtype
                total.backward()
        start += rows


def surrogate(outputs, leaves, rows, with_scalars):
    """A scalar whose gradient with respect to `outputs` is that of the leaves: their product, summed."""
    total = 0
    for name, output in outputs.items():
        gradient = leaves[name].grad
        if gradient is not None and output.requires_grad and (output.ndim or with_scalars):
            total = total + (output * (gradient[rows] if output.ndim else gradient)).sum()
    return total


@contextlib.contextmanager
def kept_buffers(module):
    """On leaving, the module's buffers are as they were."""
    before = [buffer.clone() for buffer in module.buffers()]
    yield
    for buffer, kept in zip(module.buffers(), before):
        buffer.copy_(kept)


def _leaf(outputs):
    output = torch.cat(outputs) if outputs[0].ndim else outputs[0].clone()
    return output.requires_grad_(output.is_floating_point())


def _no_exchange(model, unless):
    return contextlib.nullcontext() if unless or not hasattr(model, "no_sync") else model.no_sync()
