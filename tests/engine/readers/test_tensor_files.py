"""A safetensors file of others gives its tensors or one sentence."""

import json

import pytest
import torch
from safetensors.torch import save_file

from clip_vl.engine.errors import DataError
from clip_vl.engine.readers.tensor_files import read_safetensors


def made(path, header, data=bytes(16)):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def tensor(shape=(4,), offsets=(0, 16), dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_a_whole_file_gives_its_tensors(tmp_path):
    save_file({"a": torch.arange(4.0)}, tmp_path / "a.safetensors")
    assert read_safetensors(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2, 3]
    assert read_safetensors(made(tmp_path / "b.safetensors", {"a": tensor()}))["a"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize(
    "header",
    [
        {"a": tensor(), "b": tensor()},  # both over the same bytes
        {"a": tensor(offsets=(0, 8), shape=(2,)), "b": tensor(offsets=(4, 16), shape=(3,))},
        {"a": tensor(shape=(5,))},
        {"a": tensor(shape=(2**62, 4))},
        {"a": tensor(shape=(2**63, 2**63, 0))},
        {"a": tensor(shape=(-4,))},
        {"a": tensor(offsets=(0, 2**62))},
        {"a": tensor(offsets=(16, 0))},
        {"a": tensor(dtype="Q8")},
        {"a": {}},
        [],
        b"{" * 200_000,
        b'{"a":' * 100_000,
        b"\xff" * 20,
        b"",
    ],
)
def test_a_header_that_does_not_describe_the_data_is_refused(tmp_path, header):
    with pytest.raises(DataError, match=r"bad\.safetensors is not a whole safetensors file") as refusal:
        read_safetensors(made(tmp_path / "bad.safetensors", header))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 500


@pytest.mark.parametrize("content", [b"", b"1234567", (2**62).to_bytes(8, "little") + b"{}", bytes(8)])
def test_a_header_longer_than_the_file_is_refused(tmp_path, content):
    (tmp_path / "bad.safetensors").write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.safetensors is not a whole safetensors file"):
        read_safetensors(tmp_path / "bad.safetensors")
