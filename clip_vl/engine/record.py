"""What args.json records of a run: its flags, the code, the machine; and values as JSON takes them."""

import datetime
import importlib.metadata
import json
import math
import os
import platform
import subprocess
from pathlib import Path

LIBRARIES = ("torch", "torchvision", "transformers", "tokenizers", "safetensors", "numpy", "pillow", "lmdb")


def changed_flags(before, now):
    """What differs between two dicts of flags, as a list like ["lr: 0.0001 -> 0.0005"]."""
    before, now = jsonable(before), jsonable(now)
    names = sorted(before.keys() | now.keys())
    return [f"{n}: {before.get(n)} -> {now.get(n)}" for n in names if before.get(n) != now.get(n)]


def describe(program, name, flags, device, before):
    """The content of args.json; a resumed run (`before`) keeps its start and notes what changed since."""
    record = {
        "program": program,
        "name": name,
        "started": now(),
        "resumed": [],
        "commit": _git_commit(),
        "machine": {"device": _device_name(device), "cores": os.cpu_count(), "host": platform.node(),
                    "processes": int(os.environ.get("WORLD_SIZE", 1))},
        "versions": {"python": platform.python_version()} | {n: v for n in LIBRARIES if (v := _version(n))},
        "args": jsonable(flags),
    }  # fmt: skip
    if before:
        known = {name: before.get(name) for name, kind in (("args", dict), ("resumed", list), ("started", str))
                 if isinstance(before.get(name), kind)}  # fmt: skip
        change = {"at": record["started"], "changed": changed_flags(known.get("args", {}), flags)}
        record |= {"started": _time(known.get("started"), record["started"])}
        record |= {"resumed": [*known.get("resumed", []), change]}
    return record


def _time(text, otherwise):
    """A time as `now` writes it, if it is one."""
    try:
        return datetime.datetime.fromisoformat(text).isoformat(timespec="seconds")
    except (TypeError, ValueError):
        return otherwise


def _git_commit():
    """The commit this file belongs to, with -dirty if the sources differ from it; None outside a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], check=True, capture_output=True)
        describe = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _device_name(device):
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.partition(":")[2].strip() for line in cpu.split("\n") if line.startswith("model name")]
    return f"CPU ({models[0] if models else platform.machine()})"


def _version(library):
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None


def plain(value):
    """A JSON value: 0-d tensors and NumPy scalars become numbers, what is not finite None."""
    value = value.item() if hasattr(value, "item") else value
    return None if isinstance(value, float) and not math.isfinite(value) else value


def finite(value):
    """JSON values of numbers, dicts and lists; what is not finite becomes null."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else plain(value)


def jsonable(flags):
    return json.loads(json.dumps(dict(flags), default=str))


def now():
    return datetime.datetime.now().astimezone().isoformat(timespec="seconds")
