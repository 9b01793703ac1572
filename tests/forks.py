"""A server that imports torch and the programs once and forks the processes that tests ask it for (conftest.py).

    python tests/forks.py DESCRIPTOR             a listening socket; the server ends when its standard input does

A request is JSON with two file descriptors, for standard output and error. It names a program and its flags, or a test
file whose `case(folder)` every process runs, and the number of processes, which get the environment that torchrun would
give them. They can be asked to send themselves a signal when a function has returned so many times. The answer is their
ids and, once all have ended, the exit code: that of the first to fail, after which the others are killed.
"""

import contextlib
import functools
import gc
import importlib
import itertools
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LATER = ("torchvision.io", "torch.utils.tensorboard", "timm.optim")  # slow, and imported inside of functions


def main(descriptor):
    """Fork a supervisor for each request; returns what to run, in the processes that are to run it."""
    listener = socket.socket(fileno=descriptor)
    while listener in select.select([listener, sys.stdin], [], [])[0]:
        connection, _ = listener.accept()
        import_programs()
        if os.fork() == 0:
            listener.close()
            return supervise(connection)
        connection.close()
    with contextlib.suppress(ChildProcessError):
        while os.wait():  # so that their time counts as this process's
            pass
    os._exit(0)


def import_programs():
    """All programs and what they import later; no thread may start here, for forks would lack it."""
    import clip_vl

    if "clip_vl.vqa" not in sys.modules:
        for name in LATER:
            importlib.import_module(name)
        for module in pkgutil.iter_modules(clip_vl.__path__):
            importlib.import_module(f"clip_vl.{module.name}")
        gc.freeze()  # else each child's first collection would copy the memory that it shares
        assert len(list(Path("/proc/self/task").iterdir())) == 1


def supervise(connection):
    """Fork the processes of one request and report on them; returns, in each of them, what to run."""
    line, (stdout, stderr), *_ = socket.recv_fds(connection, 1 << 20, 2)
    request = json.loads(line)
    run = case_of(request) if "case" in request else program_of(request)
    port, children = free_port(), []
    for rank in range(request["nproc"]):
        children.append(os.fork())
        if children[-1] == 0:
            connection.close()
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            if request["nproc"] > 1:
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(request["nproc"])}
            return run
        os.setpgid(children[-1], children[0])
    connection.sendall(struct.pack(f"{len(children)}i", *children))
    code = wait_for(children, connection)
    with contextlib.suppress(OSError):
        connection.sendall(struct.pack("i", code))
    os._exit(0)


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def wait_for(children, connection):
    """The exit code of the first process to fail, or 0; all are killed then, or when the test goes away."""
    waiting, first = {os.pidfd_open(child): child for child in children} | {connection: None}, 0
    while len(waiting) > (connection in waiting):
        for ready in select.select(list(waiting), [], [])[0]:
            child = waiting.pop(ready)
            code = child and os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            first = first or code or 0
            if child is None or code:
                kill_group(children[0])
    kill_group(children[0])  # loader workers that live on
    return first


def kill_group(leader):
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def send_signal(module, function, calls, number):
    """From now on the given call of module.function ends with a signal; SIGKILL ends the whole group."""
    *owners, name = function.split(".")
    owner = functools.reduce(getattr, owners, importlib.import_module(module))
    function, counter = getattr(owner, name), itertools.count(1)

    def counted(*args, **kwargs):
        result = function(*args, **kwargs)
        if next(counter) == calls:
            os.killpg(0, number) if number == signal.SIGKILL else os.kill(os.getpid(), number)
        return result

    setattr(owner, name, counted)


def program_of(request):
    def run():
        """What `python -m clip_vl.NAME` does."""
        name = f"clip_vl.{request['program']}"
        if "signal" in request:
            send_signal(*request["signal"])
        sys.argv = [f"{name}.py", *request["flags"]]
        sys.modules.pop(name)
        runpy.run_module(name, run_name="__main__", alter_sys=True)

    return run


def case_of(request):
    case = runpy.run_path(request["case"])["case"]

    def run():
        import torch

        rank, W = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
        if W > 1:
            torch.distributed.init_process_group("gloo")
        folder = Path(request["folder"])
        torch.save(case(folder), folder / f"{W}.{rank}.pt")
        if W > 1:
            torch.distributed.barrier()
        os._exit(0)

    return run


if __name__ == "__main__":
    sys.path[0] = str(ROOT)
    main(int(sys.argv[1]))()
