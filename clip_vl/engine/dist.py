"""Distributed processes: set-up from torchrun's environment, collectives, and the exit of a rank.

Several processes exchange gradients through DistributedDataParallel (NCCL on GPUs, gloo on CPUs); small values on the
host always go through gloo. Rank 0 prints and writes.
"""

import datetime
import errno
import os
import signal
import sys
import time
import traceback

import torch
import torch.distributed
from torch.nn.parallel import DistributedDataParallel

from clip_vl.engine import signals
from clip_vl.engine.errors import Finished, Interrupted, ProgramError, kill_children, leave, printable
from clip_vl.engine.readers.text import split_lines

PEER_FAILURE = ("Connection closed by peer", "Connection reset", "Broken pipe", "Timed out waiting", "Socket closed")


def rank():
    return int(os.environ.get("RANK", 0))


def local_rank():
    return int(os.environ.get("LOCAL_RANK", 0))


def world_size():
    return int(os.environ.get("WORLD_SIZE", 1))


def timeout_seconds():
    """The time that a process waits for another one, or for a loader worker."""
    return int(os.environ.get("CLIP_VL_TIMEOUT", 1800))


def setup():
    """Join the process group of torchrun, if there is one; returns the device of this process."""
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(local_rank())
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if world_size() > 1 and not torch.distributed.is_initialized():
        timeout = datetime.timedelta(seconds=timeout_seconds())
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timeout)
    return torch.device("cuda", local_rank()) if cuda else torch.device("cpu")


def print0(*values):
    if rank() == 0:
        print(*(printable(value, keep="\n\t") for value in values), flush=True)


def progress(batches, description, wanted):
    """The batches, with a progress bar on the terminal of rank 0 if `wanted`."""
    if not (wanted and rank() == 0 and sys.stderr.isatty()):
        return batches
    from tqdm import tqdm

    return tqdm(batches, desc=description, leave=False)


def barrier():
    """Wait for all processes, through gloo: the wait may be long and uses no device."""
    agree(0)


def agree(*flags):
    """The maximum of each small integer over all processes."""
    if world_size() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.int64)
    torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MAX)
    return tuple(values.tolist())


def sum_over_ranks(values):
    """Sum of a small tensor over all processes, on the host and in its dtype."""
    values = values.detach().cpu()
    if world_size() > 1:
        torch.distributed.all_reduce(values)
    return values


def gather(value):
    """List of the `value` of every process in rank order, on every process; values are picklable."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def gather_rows(tensor):
    """The rows of all processes in rank order: (B, ...) -> (W * B, ...), without gradient; B is the same on all."""
    tensor = tensor.detach().contiguous()
    if world_size() == 1:
        return tensor
    gathered = tensor.new_empty(world_size() * tensor.shape[0], *tensor.shape[1:])
    torch.distributed.all_gather(list(gathered.chunk(world_size())), tensor)
    return gathered


def broadcast_buffers(module):
    """Copy the buffers of a module from rank 0 to all processes."""
    if world_size() > 1:
        for buffer in module.buffers():
            torch.distributed.broadcast(buffer, src=0)


def all_gather(tensor):
    """`gather_rows` with gradient: the rows of a process receive the sum of their gradients on all processes.

    For a loss whose mean over the processes is that of the whole batch, this is W times its gradient, which the mean of
    DistributedDataParallel over the processes turns into the gradient of the whole batch.
    """
    return tensor if world_size() == 1 else _AllGather.apply(tensor)


def all_reduce(tensor):
    """The sum of a tensor over all processes; its gradient is the sum of their gradients."""
    return tensor if world_size() == 1 else _AllReduce.apply(tensor)


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        return gather_rows(tensor)

    @staticmethod
    def backward(ctx, gradient):
        B = gradient.shape[0] // world_size()
        if gradient.is_cuda:
            mine = gradient.new_empty(B, *gradient.shape[1:])
            torch.distributed.reduce_scatter(mine, list(gradient.contiguous().chunk(world_size())))
            return mine
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(gradient)  # gloo has no fast reduce-scatter
        return gradient[rank() * B : (rank() + 1) * B]


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tensor):
        tensor = tensor.clone(memory_format=torch.contiguous_format)
        torch.distributed.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx, gradient):
        return _AllReduce.apply(gradient)


def first_rank_builds(build):
    """`build()` on the first process of each node, then on the others, which find the result on disk."""
    result = build() if local_rank() == 0 else None
    barrier()
    return build() if local_rank() else result


def wrap(model, device):
    """The model in DistributedDataParallel; for a single process the model itself."""
    if world_size() == 1:
        return model
    return DistributedDataParallel(
        model, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


def bare(model):
    """The model without the wrapper of `wrap`."""
    return getattr(model, "module", model)


def unwrap(model):
    """The model without its wrapper, with the buffers of rank 0 on every rank.

    Between two exchanges each rank has BatchNorm statistics of its own batches; evaluation must not depend on them.
    """
    module = bare(model)
    if module is not model:
        broadcast_buffers(module)
    return module


def run_program(main, flags):
    """Run `main(flags)` and exit with its code.

    0 done, 2 user error, 3 data error, 4 diverged, 75 interrupted after saving, 1 any other error. The first rank that
    fails writes its message to $CLIP_VL_EXIT_FILE, for the launch script; ranks that fail after a peer print nothing.
    """
    signals.listen(can_raise=True)
    try:
        error = _error_of(main, flags)
    except (Exception, Interrupted) as second:  # also raised by the loader's handler or a signal while main ends
        error = second
    if error is not None:
        _leave_because(error)
    signals.finish()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # the loader's handler would raise for the workers killed now
    kill_children()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
        sys.stdout.flush()
        os._exit(0)  # threads of gloo may outlive their group and, in torch 2.11, abort the exit of the interpreter


def _error_of(main, flags):
    """The exception of `main(flags)`, or None. Afterwards the loader's SIGCHLD handler does not raise for workers."""
    try:
        main(flags)
    except Finished:
        return None
    except (Exception, Interrupted) as error:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # `leave` kills workers
        return error


def _leave_because(error):
    """Exit with the code and the message of an error."""
    follows = _is_peer_failure(error) or "DataLoader worker" in str(error)
    if follows and not isinstance(error, ProgramError) and signals.requested():
        signals.answer()  # the others have ended because of the signal
    signals.finish()
    if isinstance(error, ProgramError | Interrupted):
        leave(error.exit_code, error.printed() if isinstance(error, ProgramError) else str(error))
    if world_size() > 1 and _is_peer_failure(error):
        time.sleep(3)  # the rank that failed first prints first
        leave(1, "stopped, because another process failed", quiet=True)
    if "DataLoader worker" in str(error):
        leave(1, f"a loader worker died ({_last_line(error)}); out of memory? use fewer --num_workers")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        leave(1, f"{error.filename or 'a file'} cannot be written: {error.strerror}; free some room and start again")
    traceback.print_exception(error)
    leave(1, f"{type(error).__name__}: {_last_line(error)}")


def _is_peer_failure(error):
    return isinstance(error, torch.distributed.DistError) or any(text in str(error) for text in PEER_FAILURE)


def _last_line(error):
    return printable(split_lines(str(error).strip() or type(error).__name__)[-1])
