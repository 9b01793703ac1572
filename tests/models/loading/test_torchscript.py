"""TorchScript archives give the weights that torch.jit would, and nothing in them runs."""

import io
import os
import pickle
import random
import resource
import zipfile

import pytest
import torch
from torch import nn

from clip_vl.engine.errors import DataError
from clip_vl.models.loading.pickled_tensors import MAX_PICKLE_BYTES, check_archive
from clip_vl.models.loading.state_dicts import is_archive
from clip_vl.models.loading.torchscript import read_torchscript

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")  # deprecated, but OpenAI's files stay


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.bn1(self.conv1(x))


class Model(nn.Module):
    """Nested modules, buffers, a bare parameter, a shared storage, typed lists and other attributes."""

    def __init__(self):
        super().__init__()
        self.visual = nn.Sequential(Block(), nn.Sequential(nn.Conv2d(4, 4, 1)))
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        both = torch.randn(6, 2)
        self.register_buffer("upper", both[:3])
        self.register_buffer("lower", both[3:].T)
        self.sizes, self.name = [1, 2], "model"

    def forward(self, x):
        return self.visual(x) * self.logit_scale + self.upper.sum() + self.lower.sum()


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "model.pt"
    torch.jit.save(torch.jit.script(Model().eval()), path)
    return path


def rewrite(path, target, **changes):
    """A copy of a zip with entries replaced (by the end of their name; None drops one)."""
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            key = next((name for name in changes if info.filename.endswith(name)), None)
            content = old.read(info) if key is None else changes[key]
            if content is not None:
                new.writestr(info.filename, content)
    return target


def call(function, *arguments):
    """The bytes of a pickle that calls a function when it is loaded the trusting way."""

    class Trap:
        def __reduce__(self):
            return function, arguments

    return pickle.dumps(Trap(), protocol=2)


@pytest.mark.parametrize("half", [False, True])
def test_the_state_dict_is_the_one_that_torch_jit_gives(tmp_path, half):
    model = torch.jit.trace(Model().eval(), torch.randn(1, 3, 4, 4))
    path = tmp_path / "model.pt"
    torch.jit.save(model.half() if half else model, path)
    expected, state = torch.jit.load(path).state_dict(), read_torchscript(path)
    assert set(state) == set(expected)
    for name, tensor in expected.items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name


def test_scripted_attributes_that_are_no_tensors_are_passed_over(archive):
    assert set(read_torchscript(archive)) == set(torch.jit.load(archive).state_dict())


def test_only_torchscript_is_taken_for_it(archive, tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "state.pt")
    assert is_archive(archive)
    assert not is_archive(tmp_path / "state.pt")


@pytest.mark.parametrize("function, named", [(os.system, "system"), (eval, "eval"), (os.getenv, "getenv")])
def test_a_pickle_that_calls_anything_is_refused_and_does_not_run(archive, tmp_path, function, named):
    marker = tmp_path / "ran"
    code = {"system": f"touch {marker}", "eval": f"open({str(marker)!r}, 'w')", "getenv": "HOME"}[named]
    hostile = rewrite(archive, tmp_path / "hostile.pt", **{"/data.pkl": call(function, code)})
    with pytest.raises(DataError, match=rf"hostile\.pt: refused: it tries to run code .*{named}"):
        read_torchscript(hostile)
    assert not marker.exists()


def tensor_pickle(numel, size, stride):
    """A pickle of {"a": tensor} over storage 0, as TorchScript writes it, with these claims."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", numel) if isinstance(value, Storage) else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, size, stride, False, {})

    stream = io.BytesIO()
    Pickler(stream, protocol=2).dump(Tensor())
    return stream.getvalue()


@pytest.mark.parametrize(
    "numel, size, stride",
    [
        (10**12, (1,), (1,)),  # more elements than the entry has bytes for
        (1, (10**6, 10**6), (0, 0)),  # one element shown a million million times
        (1, (1,), (-1,)),
        (1, (-5,), (1,)),
        (1, "ab", (1,)),
    ],
)
def test_a_tensor_that_claims_more_than_is_stored_is_refused(tmp_path, numel, size, stride):
    path = tmp_path / "claims.pt"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", tensor_pickle(numel, size, stride))
        file.writestr("m/data/0", b"\0" * 4)
        file.writestr("m/constants.pkl", b"")
    with pytest.raises(DataError, match=r"claims\.pt"):
        read_torchscript(path)


@pytest.mark.parametrize(
    "opcodes",
    [
        b"\x80\x05\x96" + (2**62).to_bytes(8, "little") + b".",  # a byte array of four exabytes
        b"\x80\x02](K\x01" + b"2" * 50 + b"e.",
        b"",
        b"\x80\x02c__torch__\nModel\n)\x81(K\x01K\x02lb.",  # a module whose state is a list
    ],
)
def test_hostile_opcodes_end_in_one_sentence(archive, tmp_path, opcodes):
    hostile = rewrite(archive, tmp_path / "hostile.pt", **{"/data.pkl": opcodes})
    with pytest.raises(DataError, match=r"hostile\.pt"):
        read_torchscript(hostile)


def test_a_huge_memo_index_allocates_nothing(archive, tmp_path):
    """pickle's C reader makes room for every index up to the one named: here 2 GB."""
    hostile = rewrite(archive, tmp_path / "hostile.pt", **{"/data.pkl": b"\x80\x02Nr\xff\xff\xff\x07."})
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError):
        read_torchscript(hostile)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # KiB


def test_modules_that_hold_each_other_end(tmp_path):
    path = tmp_path / "circle.pt"
    module = b"c__torch__\nModel\n)\x81q\x00}X\x04\x00\x00\x00selfh\x00sb."
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", b"\x80\x02" + module)
        file.writestr("m/constants.pkl", b"")
    assert read_torchscript(path) == {}


def test_an_oversized_pickle_is_refused(archive, tmp_path):
    hostile = rewrite(archive, tmp_path / "hostile.pt", **{"/data.pkl": bytes(MAX_PICKLE_BYTES + 1)})
    with pytest.raises(DataError, match=r"a data\.pkl larger than 16 MiB"):
        read_torchscript(hostile)


def test_a_compressed_archive_is_refused_before_it_unpacks(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("m/data/0", bytes(2**20))
    with pytest.raises(DataError, match=r"bomb\.pt: refused: its entries unpack to more bytes"):
        check_archive(path)


def test_no_damaged_byte_ends_in_anything_but_weights_or_one_sentence(archive, tmp_path):
    content, draw = archive.read_bytes(), random.Random(0)
    for _ in range(60):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path = tmp_path / "damaged.pt"
        path.write_bytes(damaged[: draw.choice([len(damaged), draw.randrange(len(damaged))])])
        try:
            check_archive(path)
            read_torchscript(path)
        except DataError as error:
            assert "damaged.pt" in str(error)
