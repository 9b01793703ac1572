"""Loaders with workers: batches come through shared memory, and a lack of it is said instead of waited for."""

from multiprocessing import resource_sharer
from types import SimpleNamespace

import pytest
import torch

from clip_vl.datasets.loader import _InSharedMemory, build_loader
from clip_vl.engine.errors import ProgramError

CPU = torch.device("cpu")
ARGS = SimpleNamespace(num_workers=1)


class Numbers:
    def __getitem__(self, key):
        return {"rows": torch.tensor(key[1]), "nested": {"x": torch.ones(2)}, "damaged": [(1, "a"), (2, "b")]}


class FullMemory:
    def __getitem__(self, key):
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)")


def test_workers_put_tensors_into_shared_memory_themselves():
    batch = _InSharedMemory(Numbers())[0, [1, 2]]
    assert batch["rows"].is_shared() and batch["nested"]["x"].is_shared()
    batches = list(build_loader(Numbers(), 0, [[1], [2, 3]], ARGS, CPU))
    assert [b["rows"].tolist() for b in batches] == [[1], [2, 3]] and batches[0]["damaged"]


@pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
def test_a_worker_that_dies_while_it_hands_over_a_batch_is_named(monkeypatch, error):
    def reset(descriptor):
        raise error

    monkeypatch.setattr(resource_sharer.DupFd, "detach", reset)
    with pytest.raises(RuntimeError, match="DataLoader worker died"):
        list(build_loader(Numbers(), 0, [[1]], ARGS, CPU))


def test_a_full_dev_shm_is_one_sentence():
    with pytest.raises(ProgramError, match=r"no room in /dev/shm: .*--ipc=host, or --shm-size"):
        list(build_loader(FullMemory(), 0, [[1]], ARGS, CPU))
