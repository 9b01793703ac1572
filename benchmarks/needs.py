"""Stops a benchmark whose data are missing, with one sentence."""

import sys
from pathlib import Path


def require(path, command):
    """The path itself; the program ends where nothing is there. command: what makes or fetches it."""
    if not Path(path).exists():
        sys.exit(f"{path} is missing; {command}")
    return path


def require_shapes(path, size="full"):
    """`require` of the built-in dataset."""
    return require(path, f"generate it: python -m clip_vl.shapes --size {size} --output {path}")
