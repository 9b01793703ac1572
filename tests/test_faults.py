"""A tenth of the quick rows of benchmarks/faults.py; whole runs under fault are in test_pretrain.py."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import faults
from fault_check import Broken

QUICK = [name for name in faults.ROWS if name not in ("killed runs", "killed ranks", "signals")]


@pytest.mark.parametrize("name", QUICK)
def test_the_promise_of_the_row_holds(name, shapes_root, tmp_path):
    try:
        broken = None
        faults.inject(name, faults.ROWS[name][0] // 10, shapes_root, tmp_path, seed=1)
    except Broken as error:
        broken = str(error)
    assert broken is None


def test_a_save_that_loses_the_older_checkpoint_breaks_its_row(tmp_path, monkeypatch):
    import fault_files

    monkeypatch.setattr(fault_files, "load_latest", lambda folder, say: (folder, {}, {"step": 2}))
    with pytest.raises(Broken, match="step 2"):
        faults.inject("damaged checkpoints", 3, None, tmp_path, seed=1)


def test_an_image_that_is_read_in_spite_of_its_damage_breaks_its_row(shapes_root, tmp_path, monkeypatch):
    import fault_input

    monkeypatch.setattr(fault_input, "record_digests", lambda path, root, names: None)
    with pytest.raises(Broken, match=r"mutation \d+ of .* was read"):
        faults.inject("damaged images", 100, shapes_root, tmp_path, seed=1)
