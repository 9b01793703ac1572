"""Files of torch.save give what torch.load gives, and hostile ones end in one sentence with memory bounded."""

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict

import pytest
import torch
from torch import nn

from clip_vl.engine.errors import DataError
from clip_vl.models.loading.state_dicts import read_state_dict
from clip_vl.models.loading.torch_files import read_torch

CALL = torch._utils._rebuild_tensor_v2


def same(first, second):
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and first.dtype == second.dtype and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def content():
    """What checkpoints hold: views of one storage, parameters, every type, an optimizer, plain values."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    both = torch.randn(6, 4)
    kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
             torch.uint8, torch.bool]  # fmt: skip
    return {
        "epoch": 3, "name": "größe", "best": None, "seed": 2**70, "bytes": b"\x00\xff", "sizes": torch.Size([1, 2]),
        "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "parameter": nn.Parameter(both),
        "views": [both[1:3], both[:, 2], both.T, both[5:5]], "kinds": [torch.arange(3).to(kind) for kind in kinds],
        "scalar": torch.tensor(2.5), "empty": torch.empty(0), "one": torch.randn(1).expand(1, 1),
    }  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_everything_is_as_torch_load_gives_it(tmp_path, zipped):
    torch.save(content(), tmp_path / "all.pt", _use_new_zipfile_serialization=zipped)
    expected = torch.load(tmp_path / "all.pt", weights_only=True)
    assert same(read_torch(tmp_path / "all.pt"), expected)


def test_a_type_without_a_storage_of_its_own_is_read(tmp_path):
    torch.save({"a": torch.arange(5).to(torch.float8_e4m3fn)}, tmp_path / "a.pt")
    assert read_torch(tmp_path / "a.pt")["a"].float().tolist() == [0, 1, 2, 3, 4]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "tensor, kind",
    [
        (torch.eye(3).to_sparse(), "a sparse tensor"),
        (torch.eye(3).to_sparse_csr, "a sparse tensor"),
        (torch.empty(3, device="meta"), "a meta tensor"),
        (lambda: torch.quantize_per_tensor(torch.randn(3), 0.1, 0, torch.qint8), "a quantized tensor"),
        (torch.zeros(3, dtype=torch.complex64), "a complex tensor"),
        (torch.zeros(3, dtype=torch.complex128), "a complex tensor"),
        (torch.zeros(1).expand(1000, 1000), "whose elements share memory"),
        (torch.zeros(20).unfold(0, 10, 1), "whose elements share memory"),
    ],
)
def test_a_tensor_that_is_not_plain_is_refused_in_one_sentence(tmp_path, tensor, kind, zipped):
    tensor = tensor() if callable(tensor) else tensor  # made here, where torch's warnings about the kind are ignored
    torch.save({"a": torch.ones(2), "b": tensor}, tmp_path / "odd.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(DataError, match=rf"odd\.pth: refused: it holds .*{kind}") as refusal:
        read_state_dict(tmp_path / "odd.pth")
    assert "\n" not in str(refusal.value)


def pickled(numel, offset=0, size=(4,), stride=(1,), key="0", storage=torch.FloatStorage, extra=()):
    """data.pkl of {"a": tensor} over one storage, with these claims."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", storage, key, "cpu", numel) if isinstance(value, Storage) else None

    class Tensor:
        def __reduce__(self):
            return CALL, (Storage(), offset, size, stride, False, OrderedDict(), *extra)

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump({"a": Tensor()})
    return stream.getvalue()


STORED = (("data/0", struct.pack("4f", 1, 2, 3, 4)),)


def archive(path, pickle_bytes, entries=STORED, compress=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickle_bytes)
        for name, value in entries:
            file.writestr(f"archive/{name}", value, compress)
    return path


def test_the_made_archive_is_one_that_loads(tmp_path):
    assert read_torch(archive(tmp_path / "a.pth", pickled(4)))["a"].tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "claims",
    [
        {"numel": 10**12},
        {"numel": 5},
        {"numel": 4, "offset": 1},
        {"numel": 4, "offset": -1},
        {"numel": 4, "offset": 2**63},
        {"numel": 4, "size": (2, 2), "stride": (3, 1)},
        {"numel": 4, "size": (10**6, 10**6), "stride": (0, 0)},
        {"numel": 4, "size": (4,), "stride": (-1,)},
        {"numel": 4, "size": (-4,)},
        {"numel": 4, "size": (2,), "stride": ()},
        {"numel": 4, "size": "abcd"},
        {"numel": 4, "size": (4.0,)},
        {"numel": 4, "storage": torch.DoubleStorage},
        {"numel": 2, "storage": torch.DoubleStorage, "size": (4,)},
        {"numel": 4, "key": "1"},
        {"numel": 4, "key": "../data.pkl"},
        {"numel": 4, "key": ((((),),),)},
        {"numel": 4, "extra": ({"neg": True},)},
    ],
)
def test_a_view_that_its_storage_does_not_hold_is_refused(tmp_path, claims):
    with pytest.raises(DataError, match=r"claims\.pth"):
        read_state_dict(archive(tmp_path / "claims.pth", pickled(**claims)))


@pytest.mark.parametrize("key", ["0", "code/0", "../code/0", "0.py"])
@pytest.mark.parametrize("constants", [[], [("constants.pkl", b"")]])
@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_storage_is_refused_under_every_name(tmp_path, key, constants, method):
    """Also in a file that passes for TorchScript, whose source code may be compressed."""
    entries = [(f"data/{key}", bytes(2**22)), *constants]
    path = archive(tmp_path / "bomb.pth", pickled(2**20, size=(2**20,), key=key), entries, method)
    with pytest.raises(DataError, match=r"bomb\.pth: refused: .*unpack to more bytes than the file has"):
        read_state_dict(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_doubled_name_is_refused(tmp_path):
    with pytest.raises(DataError, match="two of its entries have one name"):
        read_torch(archive(tmp_path / "a.pth", pickled(4), [("data/0", bytes(16)), ("data/0", bytes(16))]))


def test_entries_that_lie_over_each_other_are_refused(tmp_path):
    """The directory of the zip lists a hundred storages that are the same bytes of the file."""
    path = archive(tmp_path / "over.pth", pickled(4), [(f"data/{n:02d}", bytes(16)) for n in range(100)])
    content = path.read_bytes()
    start = content.index(b"PK\x01\x02")
    first = content.index(b"archive/data/00") - 30
    directory = bytearray(content[start:])
    position = directory.index(b"PK\x01\x02", 4)
    while (position := directory.find(b"PK\x01\x02", position)) >= 0:
        directory[position + 42 : position + 46] = first.to_bytes(4, "little")
        directory[position + 20 : position + 28] = (1000).to_bytes(4, "little") * 2
        position += 4
    path.write_bytes(content[:start] + directory)
    with pytest.raises(DataError, match="unpack to more bytes than the file has"):
        read_torch(path)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x02" + b")" + b"\x85" * 300_000 + b"}" + b"",  # tuples in tuples
        b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.",  # as the key of a dict, whose hash would recurse
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x40\x85R.",  # 256 GB of zeros
        b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b".",
        b"\x80\x02ctorch\nTensor\n\x8a\x05\x00\x00\x00\x00\x40\x85R.",
        b"\x80\x02ctorch\nload\nX\x01\x00\x00\x00a\x85R.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(NX\x01\x00\x00\x00a}tb.",  # attributes of one of our functions
        b"\x80\x02\x82\x01.",
        b"I" + b"9" * 10_000 + b"\n.",
        b"]" * 100_000 + b"a" * 99_999 + b".",
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_opcodes_end_in_one_sentence(tmp_path, opcodes, zipped):
    path = tmp_path / "hostile.pth"
    if zipped:
        archive(path, opcodes)
    else:
        torch.save({}, path, _use_new_zipfile_serialization=False)
        head = path.read_bytes()
        path.write_bytes(head[: head.rindex(b"\x80\x02}")] + opcodes + b"\x80\x02].")
    with pytest.raises(DataError, match=r"hostile\.pth") as refusal:
        read_state_dict(path)
    assert len(str(refusal.value)) < 600 and "\n" not in str(refusal.value)


def test_an_old_file_that_states_more_than_it_has_is_refused(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.ones(1000)}, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    path.write_bytes(content.replace(b"M\xe8\x03Nt", b"J\xff\xff\xff\x7fNt", 1))
    with pytest.raises(DataError, match="storages that state more bytes than the file has"):
        read_torch(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_damaged_byte_ends_in_anything_but_data_or_one_sentence(tmp_path, zipped):
    torch.save(content(), tmp_path / "whole.pt", _use_new_zipfile_serialization=zipped)
    whole, draw, path = (tmp_path / "whole.pt").read_bytes(), random.Random(0), tmp_path / "damaged.pt"
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
        try:
            read_torch(path)
        except DataError as error:
            assert "damaged.pt" in str(error)
