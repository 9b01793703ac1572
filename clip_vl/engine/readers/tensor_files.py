"""Reads safetensors files that are not trusted: the header is checked against the file's size before allocation."""

import os
from pathlib import Path

from clip_vl.engine.errors import DataError

MAX_HEADER_BYTES = 16 * 2**20  # a tensor takes about 100


def read_safetensors(path):
    """Name -> tensor on the CPU; DataError for a file that is not whole, or whose header does not describe it."""
    from safetensors.torch import load_file

    with Path(path).open("rb") as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
    if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise DataError(
            f"{path} is not a whole safetensors file: its header is stated as {length:,} bytes, and the file has "
            f"{size:,} (a header may have {MAX_HEADER_BYTES:,}); fetch it again"
        )
    try:
        return load_file(path)
    except Exception as error:  # the library checks offsets and shapes, with several types of errors
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{path} is not a whole safetensors file ({reason}); fetch it again") from error
