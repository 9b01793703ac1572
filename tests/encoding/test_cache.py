"""Features of a frozen tower: made once, in blocks that a killed run leaves to the next."""

import pickle

import numpy as np
import pytest
import torch

from clip_vl.datasets.storage.cache import writable_root
from clip_vl.encoding.cache import cached_features
from clip_vl.engine.errors import DataError

TOWER = {"name": "tiny", "weights": "abc"}


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    writable_root.cache_clear()


class Encoder:
    """Features (n, -n, n / 4) of number n; remembers what it was asked, and dies when told to."""

    def __init__(self, dies_at=None):
        self.asked, self.dies_at = [], dies_at

    def __call__(self, numbers):
        if self.dies_at is not None and self.dies_at in numbers:
            raise KeyboardInterrupt
        self.asked += numbers.tolist()
        values = torch.from_numpy(numbers).float()
        return torch.stack([values, -values, values / 4], dim=1)


def made(root, encode, count=10, **options):
    return cached_features("source", TOWER, count, encode, root / "cache", block=4, **options)


def test_features_are_those_of_the_encoder_and_made_once(tmp_path):
    encoder, unused = Encoder(), Encoder(dies_at=0)
    features = made(tmp_path, encoder)
    assert encoder.asked == list(range(10))
    assert features[7].tolist() == [7, -7, 1.75] and features.values.dtype == np.float16
    assert features[np.array([1, 3])].tolist() == [[1, -1, 0.25], [3, -3, 0.75]]
    assert len(features) == 10 and features.width == 3
    assert made(tmp_path, unused).folder == features.folder
    assert len(pickle.dumps(features)) < 500 and pickle.loads(pickle.dumps(features))[9].tolist() == [9, -9, 2.25]


def test_a_killed_run_leaves_its_blocks_to_the_next(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, Encoder(dies_at=9))
    (tmp_path / "cache").joinpath("half.tmp").write_bytes(b"")
    encoder = Encoder()
    features = made(tmp_path, encoder)
    assert encoder.asked == [8, 9]
    assert features.values[:, 0].tolist() == list(range(10))
    assert not list((tmp_path / "cache").glob("*.parts"))


def test_another_tower_source_type_or_count_is_another_cache(tmp_path):
    folders = {made(tmp_path, Encoder()).folder, made(tmp_path, Encoder(), dtype="float32").folder}
    folders.add(made(tmp_path, Encoder(), count=9).folder)
    for source, tower in (("other", TOWER), ("source", {**TOWER, "weights": "abd"})):
        folders.add(cached_features(source, tower, 10, Encoder(), tmp_path / "cache", block=4).folder)
    assert len(folders) == 5


def test_what_float16_cannot_hold_is_an_error_and_nan_is_kept(tmp_path):
    with pytest.raises(DataError, match="beyond 65,504"):
        made(tmp_path, lambda numbers: np.full((len(numbers), 2), 1e5, dtype=np.float32))
    large = made(tmp_path, lambda numbers: np.full((len(numbers), 2), 1e5, dtype=np.float32), dtype="float32")
    assert large[0].tolist() == [1e5, 1e5]
    assert np.isnan(
        cached_features("nan", TOWER, 3, lambda n: np.full((len(n), 2), np.nan), tmp_path / "cache")[0]
    ).all()


def test_an_encoder_that_gives_another_number_of_rows_is_noticed(tmp_path):
    with pytest.raises(ValueError, match=r"encode gave \(1, 2\) for 4 numbers"):
        made(tmp_path, lambda numbers: np.zeros((1, 2)))


def _encode_on_rank(rank, root, port):
    import os

    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo")
    encoder = Encoder()
    features = cached_features("source", TOWER, 10, encoder, root / "cache", block=4)
    (root / f"asked{rank}").write_text(str(encoder.asked))
    assert features.values[:, 0].tolist() == list(range(10))
    torch.distributed.destroy_process_group()


def test_two_processes_share_the_work(tmp_path):
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(_encode_on_rank, (tmp_path, port), nprocs=2, start_method="fork")
    assert (tmp_path / "asked0").read_text() == "[0, 1, 2, 3, 8, 9]"
    assert (tmp_path / "asked1").read_text() == "[4, 5, 6, 7]"
