"""Runs `case()` of a test file on 1, 2 and 4 processes that share one import of torch; not a test itself.

    python tests/ranks.py tests/losses/test_processes.py FOLDER 1 2 4

`case()` returns anything torch.save takes; what rank r of W returned is FOLDER/W.r.pt. The processes are forks, joined
by gloo over a file.
"""

import os
import runpy
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    path, folder, *sizes = sys.argv[1:]
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    case = runpy.run_path(path)["case"]
    children = []
    for W in map(int, sizes):
        for rank in range(W):
            child = os.fork()
            children.append(child)
            if child:
                continue
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(W)}
            torch.set_num_threads(1)
            if W > 1:
                meeting = f"file://{Path(folder).resolve()}/{W}.meet"
                torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=W)
            torch.save(case(), Path(folder, f"{W}.{rank}.pt"))
            if W > 1:
                torch.distributed.barrier()
            os._exit(0)
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children))
