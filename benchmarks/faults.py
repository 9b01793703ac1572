"""Injects faults into runs, files and inputs, and checks what survives; prints a row for each kind of fault.

    .venv/bin/python benchmarks/faults.py --data_root data/shapes_smoke --share 0.1     a tenth
    .venv/bin/python benchmarks/faults.py --data_root data/shapes_smoke --only "killed runs,signals" --at_once 4

Generate the data with `python -m clip_vl.shapes --size smoke --output data/shapes_smoke`. All random choices follow
from --seed, except the moment at which a signal arrives. The exit code is 1 when a check failed; its row says which.
The rows are in fault_runs (whole runs; all of them take more than an hour of one core), fault_files, fault_steps and
fault_input (minutes); tests/test_faults.py runs a tenth of the quick ones.
"""

import argparse
import inspect
import os
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import fault_files
import fault_input
import fault_runs
import fault_steps
from fault_check import Broken
from needs import require_shapes

ROWS = {
    "killed runs": (200, fault_runs.killed_runs),
    "killed ranks": (20, fault_runs.killed_ranks),
    "signals": (100, fault_runs.signals),
    "killed saves": (500, fault_files.killed_saves),
    "damaged checkpoints": (3000, fault_files.damaged_checkpoints),
    "full disk": (50, fault_files.full_disk),
    "damaged stores": (1000, fault_files.damaged_stores),  # not in the table
    "non-finite steps": (5000, fault_steps.non_finite_steps),
    "damaged images": (10000, fault_input.damaged_images),
    "damaged annotations": (2000, fault_input.damaged_annotations),
    "hostile files": (200, fault_input.hostile_files),
}


def inject(name, count, data_root, folder, seed, at_once=1):
    """Run a row below an empty folder; its remark, or None. Raises Broken."""
    _, row = ROWS[name]
    rng = random.Random(f"{seed} {name}")
    given = {"count": count, "data_root": data_root, "folder": folder / name.replace(" ", "_"), "rng": rng}
    given["runs"] = fault_runs.Runs(given["folder"], data_root, rng, at_once)
    return row(*(given[parameter] for parameter in inspect.signature(row).parameters))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_root", type=Path, required=True)
    parser.add_argument("--share", type=float, default=1.0, help="of the counts")
    parser.add_argument("--only", default=",".join(ROWS), help="rows to run, separated by commas")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at_once", type=int, default=os.cpu_count(), help="whole runs at the same time")
    parser.add_argument("--folder", type=Path, help="an existing folder to work in [a temporary one]")
    args = parser.parse_args()
    require_shapes(args.data_root, "smoke")
    broken = 0
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libjpeg's and the unpickler's remarks on what is fed to them
    with tempfile.TemporaryDirectory(dir=args.folder) as temporary:
        for name in args.only.split(","):
            count, start = max(1, round(ROWS[name][0] * args.share)), time.monotonic()
            try:
                remark = inject(name, count, args.data_root.resolve(), Path(temporary), args.seed, args.at_once)
                verdict = f"held; {remark}" if remark else "held"
            except Broken as error:
                verdict, broken = f"BROKEN: {error}", broken + 1
            print(f"{name:20s} {count:6d}   {time.monotonic() - start:6.0f} s   {verdict}", flush=True)
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
